"""Every sentence that is shown to a model, as files. `{name}` stands for a value; all other braces are
text."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from sao.errors import ConfigError

_FIELD = re.compile(r"\{([a-z_]+)\}")


def load_template(name: str, fields: tuple[str, ...]) -> str:
    """The text of a template: a name in this folder (such as `judge` or `world/judge`) or a file by path.

    Raises ConfigError where there is none, or where one of `fields` does not stand in it.
    """
    shipped = resources.files("sao.templates").joinpath(f"{name}.txt")
    path = Path(name)
    try:
        text = shipped.read_text("utf-8") if shipped.is_file() else path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"no template {name!r}: neither a file nor one of sao/templates ({type(error).__name__})",
            key="template",
        ) from error
    missing = [field for field in fields if f"{{{field}}}" not in text]
    if missing:
        raise ConfigError(f"template {name!r}: {{{missing[0]}}} does not stand in it", key="template field")
    return text.strip()


def fill(template: str, **values: str) -> str:
    """The template with its fields filled in, in one pass: braces inside a value are never read as a
    field."""
    return _FIELD.sub(lambda found: values.get(found[1], found[0]), template)
