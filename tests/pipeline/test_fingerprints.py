"""Every key of a recipe counts for the folder of the step that it belongs to, or says why it does not."""

import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from sao.config import Config, affects_records, field_names, make_config, section_of
from sao.errors import ConfigError, SAOError
from sao.pipeline.rounds import Round
from sao.pipeline.steps import STEPS

IMPORTED: dict[str, Any] = {
    "pairs": {"imported": "x"}, "judging": {"method": "given", "orders": "one"}
}  # fmt: skip
BASES: tuple[dict[str, Any], ...] = (
    # As shipped, with everything on that a key could belong to.
    {"filters": {"duplicates": "near"}, "responses": {"n": 4}},
    {"engine": {"name": "vllm"}},
    {"evaluation": {"engine": {"name": "vllm"}}},
    {"engine": {"name": "openai"}, "model": "some/model"},
    {"engine": {"name": "openai"}, "evaluation": {"engine": {"name": "openai"}}},
    {"personas": {"source": "self"}},
    {"prompts": {"checkable": 0.5}, "evaluation": {"checkable": 0.5}},
    {"personas": {"source": "none"}},
    {"prompts": {"method": "user_turn"}},
    {"prompts": {"source": "FOLDER/prompts.jsonl"}},
    {"pairs": {"source": "FOLDER/pairs.jsonl"}},
    IMPORTED,
    {"judging": {"method": "text", "template": "judge_reasoning", "max_tokens": 99}},
    {"judging": {"method": "pointwise"}},
    {"judging": {"engine": {"name": "vllm", "model": "builtin:world"}}},
    {"judging": {"engine": {"name": "openai", "model": "m"}}},
    {"judging": {"method": "function", "function": "json:dumps"}},
    {"train": {"method": "lora", "weights": "bfloat16"}},
    {"train": {"loss": "dpo"}},
)
OTHERS: dict[str, tuple[Any, ...]] = {
    "prompts.check_kinds": (["no_commas"],),
    # Values that a rule of thumb does not find.
    "model": ("FOLDER/other",),
    "chat.template": ("FOLDER/template.jinja",),
    "personas.source": ("none", "builtin:world"),
    "personas.writing.template": ("persona_related",),
    "personas.writing.template_related": ("persona",),
    "personas.writing.traits": ("world",),
    "prompts.source": ("FOLDER/prompts.jsonl",),
    "prompts.mix": ({"prompt": 1.0, "prompt_code": 1.0},),
    "prompts.template": ("prompt_code",),
    "prompts.template_user_turn": ("prompt",),
    "prompts.template_without_persona": ("prompt",),
    "filters.decontaminate": (["FOLDER/prompts.jsonl"],),
    "filters.reject": ("json:dumps",),
    "judging.function": ("json:loads",),
    "judging.template": ("world/judge",),
    "judging.template_pointwise": ("judge",),
    "judging.wordings": (["judge", "judge_reader"],),
    "judging.choices": (("A", "B"),),
    "judging.choices_pointwise": (("Good", "Bad"),),
    "judging.panel": ([{"template": "world/judge"}],),
    "judging.engine.model": ("builtin:world", "other"),
    "judging.engine.vllm.lora": ("FOLDER/adapter",),
    "engine.vllm.lora": ("FOLDER/adapter",),
    "evaluation.engine.vllm.lora": ("FOLDER/adapter",),
    "pairs.source": ("FOLDER/pairs.jsonl",),
    "rounds.lr": ([1e-5],),
    "rounds.beta": ([2.0],),
    "train.batch_size": (256,),
    "train.lora.targets": (["q_proj"],),
}
SIZES = ("personas.n", "personas.held_out")
"""How many records there are; tests/pipeline/test_growth.py."""
ELSEWHERE = {
    "evaluation.max_tokens": "the verdicts and marks of `sao eval` on two models (sao.pipeline.two_models)",
}
"""Keys that count for steps of another pipeline."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("walk")
    (root / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    (root / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    (root / "template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    (root / "adapter").mkdir()
    (root / "adapter" / "adapter_config.json").write_text("{}")
    return root


def placed(value: Any, folder: Path) -> Any:
    """A value with FOLDER put in."""
    if isinstance(value, str):
        return value.replace("FOLDER", str(folder))
    if isinstance(value, list | tuple):
        return type(value)(placed(item, folder) for item in value)
    return {name: placed(item, folder) for name, item in value.items()} if isinstance(value, dict) else value


def with_key(data: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """A copy of nested dicts with one key set."""
    first, _, rest = dotted.partition(".")
    inner = data.get(first)
    return {**data, first: with_key(inner if isinstance(inner, dict) else {}, rest, value) if rest else value}


def other_values(dotted: str, value: Any, annotation: Any) -> Iterator[Any]:
    """Other values that a key may have."""
    yield from OTHERS.get(dotted, ())
    options = [annotation]
    while options:
        kind = options.pop()
        if get_origin(kind) in (Union, types.UnionType, Annotated):
            options += get_args(kind)
        elif get_origin(kind) is Literal:
            yield from (option for option in get_args(kind) if option != value)
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value + 1, value / 2, value * 2, 0.3)
    yield from (1, 0.5, 7.0, "other", {"a": 1}, ["en"])


def field_of(dotted: str) -> tuple[type[BaseModel], str]:
    """The section and the name of a key."""
    *parents, name = dotted.split(".")
    section: type[BaseModel] = Config
    for parent in parents:
        inner = section_of(section.model_fields[parent].annotation)
        assert inner is not None
        section = inner
    return section, name


def value_of(config: Config, dotted: str) -> Any:
    found: Any = config
    for name in dotted.split("."):
        found = getattr(found, name, None)
    return found


def folders(config: Config) -> dict[str, str]:
    """The fingerprint of every step, or why there is none; those of a second round as "2 step"."""
    first = Round(config, Path("x"), STEPS)
    found = {}
    for run, name in ((first, "{}"), (first.next(), "2 {}")):
        for step in STEPS:
            if run.has(step.name):
                try:
                    key = " ".join(stage.fingerprint for stage in run.stages(step.name))
                except SAOError as error:
                    key = type(error).__name__
                found[name.format(step.name)] = key
    return found


@cache
def unchanged(base: int, folder: Path) -> tuple[dict[str, Any], Config, dict[str, str]]:
    """One of BASES, its configuration and its folders."""
    data = placed(BASES[base], folder)
    config = make_config(data)
    return data, config, folders(config)


def changes_something(dotted: str, folder: Path) -> bool:
    section, name = field_of(dotted)
    for base in range(len(BASES)):
        data, before, places = unchanged(base, folder)
        value = value_of(before, dotted)
        if "." in dotted and value_of(before, dotted.rpartition(".")[0]) is None:
            continue  # to set it would add its whole section
        for other in other_values(dotted, value, section.model_fields[name].annotation):
            try:
                after = make_config(with_key(data, dotted, placed(other, folder)))
            except ConfigError:
                continue
            if value_of(after, dotted) != value and folders(after) != places:
                return True
    return False


KEYS = sorted(set(field_names(Config)) - set(SIZES))


@pytest.mark.parametrize("dotted", KEYS)
def test_every_key_counts_or_says_why_not(dotted: str, folder: Path) -> None:
    section, name = field_of(dotted)
    if affects_records(section, name):
        assert dotted in ELSEWHERE or changes_something(dotted, folder), f"{dotted} changes no step's folder"
    else:
        assert not changes_something(dotted, folder), f"{dotted} is marked affects_records=False, but counts"
        extra = section.model_fields[name].json_schema_extra
        assert isinstance(extra, dict)
        assert len(str(extra["because"])) > 3


@pytest.mark.parametrize("dotted", SIZES)
def test_how_many_there_are_moves_no_record(dotted: str) -> None:
    before, after = (folders(make_config(with_key({}, dotted, n))) for n in (300, 400))
    moved = {step for step, folder in before.items() if after[step] != folder}
    # Which prompts are kept hangs on all of them, and so do calibration and what follows from it.
    first = {step for step in moved if not step.startswith("2 ")}
    assert first == {"filtered", "pairs", "train", "heldout_tuned", "comparisons"}


def test_what_training_reads_counts_where_the_answers_are_imported() -> None:
    """The system message is trained on with the imported answers, which lie in one folder whatever it is."""
    plain, told = (folders(make_config({**IMPORTED, "responses": {"system": s}})) for s in (None, "Be kind"))
    moved = {step for step, folder in plain.items() if told[step] != folder}
    first = {step for step in moved if not step.startswith("2 ")}
    assert first == {"train", "heldout_base", "heldout_tuned", "comparisons"}


def test_the_engine_that_samples_does_not_count() -> None:
    names = ("auto", "transformers", "vllm")
    found = [folders(make_config({"engine": {"name": name}})) for name in names]
    assert found[0] == found[1] == found[2]
    assert folders(make_config({"engine": {"name": "openai"}})) != found[0]  # another holder of weights


def test_the_walk_finds_all_keys() -> None:
    assert len(KEYS) > 130
    assert {
        "personas.writing.min_new",
        "engine.vllm.extra",
        "train.lora.r",
        "evaluation.engine.dtype",
    } <= set(KEYS)
