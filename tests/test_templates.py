"""Templates: their fields, and what is put into them."""

from pathlib import Path

from sao.errors import ConfigError
from sao.templates import fill, load_template
from support.errors import raises


def test_braces_in_values_are_text() -> None:
    assert (
        fill("{prompt} | {first}", prompt="{first} {0} {}", first="{prompt}") == "{first} {0} {} | {prompt}"
    )


def test_a_template_without_its_field_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("nothing")
    with raises(ConfigError, key="template field", match=r"\{persona\}"):
        load_template(str(tmp_path / "t.txt"), ("persona",))
    with raises(ConfigError, key="template"):
        load_template("nowhere", ())
