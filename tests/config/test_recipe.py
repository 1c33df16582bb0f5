"""Recipes: every one loads, keys and values that cannot be are refused, and which of them count."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sao.config import (
    Config,
    PromptsConfig,
    TrainConfig,
    field_names,
    load_recipe,
    make_config,
    recipe_names,
)
from sao.config.recipe import RENAMED
from sao.errors import ConfigError
from sao.pipeline.folder import reader
from sao.pipeline.reader import Reader
from support.errors import raises


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads(name: str) -> None:
    config = load_recipe(name)
    assert make_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.bata", "1", "Did you mean train.beta"),
        ("beta", "1", "Did you mean train.beta"),
        ("judgin.method", "text", "Did you mean judging"),
        ("judging.method", "guess", "'checks' or 'given'"),
        ("judging.method", "checks", "prompts.checkable"),
        ("prompts.check_kinds", "[no_comma]", "Did you mean no_commas"),
        ("prompts.check_kinds", "[word_range]", "only for held-out prompts"),
        ("prompts.max_checks", "4", "less than or equal to 3"),
        ("train.beta", "-1", "greater than 0"),
        ("responses.n", "1", "greater than or equal to 2"),
        ("model.x", "1", "model is a value, not a section"),
        ("train.micro_batch_size", "5", "does not divide batch_size"),
        ("zzzz", "1", "--help-config"),
    ],
)
def test_bad_keys_and_values_say_what_to_do(key: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("demo", {key: value})
    assert message in str(caught.value)


def test_gamma_in_two_ways_is_an_error_and_each_alone_means_the_same() -> None:
    with raises(ConfigError, key="train", match=r"3\.0.*0\.3"):
        load_recipe("default", {"train.gamma": "3", "train.gamma_beta_ratio": "0.3"})
    one = load_recipe("default", {"train.gamma": "3", "train.beta": "10"})
    two = load_recipe("default", {"train.gamma_beta_ratio": "0.3", "train.beta": "10"})
    assert one.train.target_margin == two.train.target_margin == 3.0


def test_numbers_in_scientific_writing_are_numbers() -> None:
    assert load_recipe("default", {"train.lr": "1e-6"}).train.lr == 1e-6


def test_recipes_that_cannot_be_read(tmp_path: Path) -> None:
    with raises(ConfigError, key="recipe", match="Did you mean demo"):
        load_recipe("deno")
    bad = tmp_path / "r.yaml"
    bad.write_text("a: [")
    with raises(ConfigError, key="recipe", match="not valid YAML"):
        load_recipe(bad)
    bad.write_text("- 1")
    with raises(ConfigError, key="recipe", match="a mapping"):
        load_recipe(bad)
    bad.write_bytes(b"\xff\xfe")
    with raises(ConfigError, key="recipe", match="cannot be read"):
        load_recipe(bad)


def test_every_field_is_described() -> None:
    def check(section: type) -> None:
        for name, field in section.model_fields.items():  # type: ignore[attr-defined]
            assert field.description, f"{section.__name__}.{name} has no docstring"
            if hasattr(field.annotation, "model_fields"):
                check(field.annotation)

    check(Config)
    assert "train.gamma_beta_ratio" in set(field_names(Config))


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 3


def test_free_text_is_never_read_as_a_number() -> None:
    config = load_recipe(
        "default", {"revision": "12e4567", "personas.source": "none", "personas.revision": "1234567"}
    )
    assert (config.revision, config.personas.source, config.personas.revision) == (
        "12e4567",
        "none",
        "1234567",
    )
    assert load_recipe("default", {"revision": "null"}).revision is None


def test_a_training_seed_counts_and_is_checked() -> None:
    assert load_recipe("default", {"train.seed": "7"}).train.counted()["seed"] == 7
    with raises(ConfigError, key="train.seed"):
        load_recipe("default", {"train.seed": "-1"})


def test_when_checkpoints_are_written_does_not_count() -> None:
    assert TrainConfig().save_minutes == 5.0
    assert TrainConfig(save_minutes=0.1).counted() == TrainConfig().counted()
    with raises(ConfigError, key="train.save_minutes"):
        load_recipe("default", {"train.save_minutes": "0"})


def test_a_key_of_before_names_the_one_of_now() -> None:
    for old, new in RENAMED.items():
        assert new in {*field_names(Config), *Config.model_fields}
        with raises(ConfigError, key=old, match=f"It is called {re.escape(new)} now"):
            load_recipe("default", {old: "1"})


def test_settings_that_do_not_belong_together_are_refused() -> None:
    for wrong in ({"prefill": True}, {"mix": {"prompt": 1.0}}):
        with pytest.raises(ValidationError, match="belongs to method instruct"):
            PromptsConfig.model_validate({"method": "user_turn", **wrong})


@pytest.mark.parametrize(
    "section", [{"responses": {"n": 3}}, {"prompts": {"source": "p.jsonl"}}, {"judging": {"orders": "both"}}]
)
def test_imported_records_are_as_they_are(section: dict[str, Any]) -> None:
    given = {"method": "given", "orders": "one", **section.get("judging", {})}
    imported = {"pairs": {"imported": "x"}, **section, "judging": given}
    with raises(ConfigError, key="recipe", match=r"imported data set.*Leave it at"):
        make_config(imported)


def test_every_way_of_writing_prompts_has_a_place_of_its_own(tmp_path: Path) -> None:
    def stage(**prompts: Any) -> Any:
        config = make_config({"model": "m", "engine": {"name": "scripted"}, "prompts": prompts})
        return reader(config, tmp_path).stage("prompts")

    plain, begun, open_turn = stage(), stage(prefill=True), stage(method="user_turn")
    assert len({s.path for s in (plain, begun, open_turn)}) == 3
    assert len({s.key for s in (plain, begun, open_turn)}) == 3


def test_defaults_of_the_filters_count_and_ids_do_not_hang_on_them(tmp_path: Path) -> None:
    """A run with near-duplicates dropped is not one with exact ones, whichever of them is the default."""

    def folder(**filters: Any) -> Reader:
        return reader(
            make_config({"model": "m", "engine": {"name": "scripted"}, "filters": filters}), tmp_path
        )

    exact, near = folder(), folder(duplicates="near")
    assert exact.stage("filtered").settings["duplicates"] == "exact"
    assert exact.stage("filtered").path != near.stage("filtered").path
    fields = type(exact.config.filters).model_fields
    assert {*fields} <= exact.stage("filtered").settings.keys()
    assert exact.stage("filtered").key == folder(duplicates="exact").stage("filtered").key
    assert exact.stage("responses").path != near.stage("responses").path
    with raises(ConfigError, key="eval", match=r"It is called evaluation now"):
        load_recipe("default", {"eval.bootstrap": "500"})
