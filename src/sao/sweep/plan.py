"""Which cells a sweep has: factors and a recipe in, validated recipes with their fingerprints out.

A factor is a key of the recipe with its values, written `train.lr=1e-5,2e-5`: commas separate them as in a
list of YAML, so those within brackets, braces and quotation marks belong to a value. By default one factor is
changed at a time. Keys that end in `seed` are repeats: every setting is run with each of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product as every_combination
from pathlib import Path
from typing import Any

import yaml
from pydantic import JsonValue
from pydantic_core import to_jsonable_python

from sao.config import Config, is_text, make_config, nearest, overridden
from sao.engines import Engine
from sao.engines.auto import settle
from sao.errors import ConfigError
from sao.models.locate import WORLD_MODEL
from sao.pipeline.preflight import first_source
from sao.pipeline.rounds import Outside, Round
from sao.pipeline.settings import asking
from sao.pipeline.steps import STEPS
from sao.records import make_id
from sao.store.manifest import MANIFEST, read_manifest

Settings = dict[str, JsonValue]
BASE = "the recipe"


@dataclass(frozen=True)
class Factor:
    """A key of the recipe and the values that it takes, each as YAML text."""

    key: str
    values: tuple[str, ...]

    @property
    def is_repeat(self) -> bool:
        """Whether its values repeat a setting instead of changing it."""
        return self.key.endswith("seed")


@dataclass(frozen=True)
class Planned:
    """A cell that is to be run."""

    config: Config
    settings: Settings
    """What differs from the recipe."""
    repeats: Settings
    run: str
    """Name of its run folder."""
    fingerprint: str

    @property
    def label(self) -> str:
        """The cell in a few words."""
        return " ".join(filter(None, (label_of(self.settings), words_of(self.repeats))))


@dataclass(frozen=True)
class Plan:
    """A sweep: its recipe, its folder, its cells in the order in which they are run, and what is to be said
    of them."""

    config: Config
    root: Path
    factors: tuple[Factor, ...]
    cells: tuple[Planned, ...]
    notes: tuple[str, ...] = ()
    given: Engine | None = field(default=None, compare=False)

    @property
    def base(self) -> Planned:
        """A cell of the setting that others are compared with: the recipe itself, else the first one."""
        return next((cell for cell in self.cells if not cell.settings), self.cells[0])


def label_of(settings: Settings) -> str:
    """A setting in a few words."""
    return words_of(settings) or BASE


def words_of(settings: Settings) -> str:
    """Keys and values as they are written on the command line."""
    return " ".join(f"{key}={_word(value)}" for key, value in settings.items())


def _word(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# Factors.


def read_factors(over: Sequence[str]) -> tuple[Factor, ...]:
    """Factors from words such as "train.lr=1e-5,2e-5".

    Raises ConfigError for a word without values, and for a key that comes twice.
    """
    factors = tuple(_factor(word) for word in over)
    if not factors:
        raise ConfigError("nothing to sweep: give --over KEY=VALUE,VALUE at least once", key="--over")
    for key, times in Counter(factor.key for factor in factors).items():
        if times > 1:
            raise ConfigError(f"--over {key}: given {times} times. Give all its values in one", key=key)
    return factors


def _factor(word: str) -> Factor:
    key, equals, text = word.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--over {word}: write it as KEY=VALUE,VALUE", key="--over")
    key, values = key.strip(), [value.strip() for value in split_values(text)]
    if not all(values):
        raise ConfigError(
            f"--over {word}: a value is missing. Write an empty text as '\"\"', and none as null", key=key
        )
    for value, times in Counter(values).items():
        if times > 1:
            raise ConfigError(f"--over {key}: {value} is given {times} times", key=key)
    return Factor(key, tuple(_unquoted(key, value) if is_text(key) else value for value in values))


def _unquoted(key: str, value: str) -> str:
    """Free text without the quotation marks around it."""
    if len(value) < 2 or value[0] != value[-1] or value[0] not in "\"'":
        return value
    try:
        return str(yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--over {key}: {value} is no text in quotation marks. Between double ones a backslash is "
            "written \\\\; between single ones it stands for itself",
            key=key,
        ) from error


def split_values(text: str) -> list[str]:
    """The values between the commas that stand in no brackets, braces or quotation marks."""
    values, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'" and not values[-1].strip(" [{,:"):  # an apostrophe within a word is none
            quote = letter
        else:
            depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not quote and depth == 0:
            values.append("")
        else:
            values[-1] += letter
    return values


# Cells.


def make_plan(
    config: Config, over: Sequence[str], root: Path, *, product: bool = False, given: Engine | None = None,
    known: bool = False,
) -> Plan:  # fmt: skip
    """The cells of a sweep over a recipe in folder `root`. `given` takes the place of the configured engine;
    `known`: models and files are those that the run folders remember, for a look at what exists.

    Raises ConfigError for a key or a value that cannot be, naming the cell, before anything is run.
    """
    if config.personas.held_out == 0:
        raise ConfigError(
            "a sweep compares on held-out prompts, and this recipe has none: set personas.held_out",
            key="personas.held_out",
        )
    factors = read_factors(over)
    looks: dict[str, Outside] = {}
    cells: dict[str, Planned] = {}
    notes: list[str] = []
    if config.train.push_to_hub is not None:
        notes.append("train.push_to_hub: a sweep uploads nothing")
    for overrides in _combinations(factors, product):
        cell = _planned(config, overrides, root, given, looks if known else None)
        first = cells.setdefault(cell.fingerprint, cell)
        if first is not cell:
            notes.append(_same_as(first, overrides))
    return Plan(config, root, factors, tuple(cells.values()), tuple(dict.fromkeys(notes)), given)


def _same_as(first: Planned, overrides: Mapping[str, str]) -> str:
    """What is said of a cell that another one is already."""
    settings = {key: value for key, value in overrides.items() if not Factor(key, ()).is_repeat}
    given = " ".join(f"{key}={value}" for key, value in (settings or overrides).items())
    return f"{given} makes the same records as {label_of(first.settings)}: one cell stands for both"


def _combinations(factors: Sequence[Factor], product: bool) -> Iterator[dict[str, str]]:
    """The overrides of all cells, repeats outermost: each setting runs once before any is repeated."""
    repeated = [factor for factor in factors if factor.is_repeat]
    changed = [factor for factor in factors if not factor.is_repeat]
    for repeat in _crossed(repeated):
        settings = _crossed(changed) if product else _one_at_a_time(changed)
        yield from ({**setting, **repeat} for setting in settings)


def _crossed(factors: Sequence[Factor]) -> Iterator[dict[str, str]]:
    keys = [factor.key for factor in factors]
    for values in every_combination(*(factor.values for factor in factors)):
        yield dict(zip(keys, values, strict=True))


def _one_at_a_time(factors: Sequence[Factor]) -> Iterator[dict[str, str]]:
    yield {}
    for factor in factors:
        yield from ({factor.key: value} for value in factor.values)


def _planned(
    config: Config,
    overrides: Mapping[str, str],
    root: Path,
    given: Engine | None,
    looks: dict[str, Outside] | None,
) -> Planned:
    where = f"--over {' '.join(f'{key}={value}' for key, value in overrides.items())}"
    cell = make_config(overridden(config.model_dump(mode="json"), overrides), where)
    changes = {key: value_of(cell, key) for key in overrides}
    repeats = {key: value for key, value in changes.items() if Factor(key, ()).is_repeat}
    settings = {
        key: value
        for key, value in changes.items()
        if key not in repeats and value != value_of(config, key)
    }  # fmt: skip
    if cell.personas.held_out == 0:
        raise ConfigError(f"{where}: then there is nothing to compare on", key="personas.held_out")
    _check_compared(cell, where)
    cell = cell.model_copy(update={"train": cell.train.model_copy(update={"push_to_hub": None})})
    settled = cell if given is not None else settle(cell)[0]
    run = run_name(settled)
    return Planned(settled, settings, repeats, run, fingerprint_of(settled, root / run, given, looks))


def _check_compared(cell: Config, where: str) -> None:
    """Raise ConfigError where neither gold nor a judge would say which cell is better."""
    has_gold = cell.evaluation.checkable > 0 or WORLD_MODEL in (cell.personas.source, cell.model)
    if not has_gold and not cell.evaluation.judged:
        raise ConfigError(
            f"{where}: nothing tells which setting is better: evaluation.checkable is 0 and "
            "evaluation.judged false. Set --evaluation.checkable 1 (constraints that a program checks), or "
            "--evaluation.judged true",
            key="evaluation.checkable",
        )


def value_of(config: Config, dotted: str) -> JsonValue:
    """The value of a key, null where its section is not there. Raises ConfigError for an unknown key."""
    value: Any = config
    for name in dotted.split("."):
        if value is None:
            return None
        if not hasattr(value, name):
            raise ConfigError(f"unknown key {dotted}.{nearest(dotted)}", key=dotted)
        value = getattr(value, name)
    found: JsonValue = to_jsonable_python(value)
    return found


def run_name(config: Config) -> str:
    """The run folder that a cell shares with all cells of the same model, engine, seed, source of prompts and
    number of personas: what a run folder cannot hold side by side (`sao.store.manifest`). A run could grow,
    but then what is kept depends on the sizes before."""
    engine = json.dumps(config.engine.counted(), sort_keys=True)
    source = (config.personas.source, first_source(config), config.pairs.imported)
    fixed = make_id(config.model, config.revision, engine, *source)[:6]
    return f"run-n{config.personas.n}-h{config.personas.held_out}-seed{config.seed}-{fixed}"


def fingerprint_of(
    config: Config, run: Path, given: Engine | None = None, looks: dict[str, Outside] | None = None
) -> str:
    """Hash of all that a cell's records depend on: the fingerprints of its steps, and the run folder, whose
    name says the sizes."""
    first = Round(asking(config), run, STEPS, given=given)
    if looks is not None:
        if run.name not in looks:
            has_run = (run / MANIFEST).is_file()
            looks[run.name] = Outside(read_manifest(run).outside if has_run else None)
        first.outside = looks[run.name]
    rounds = [first]
    while len(rounds) < config.rounds.n:
        rounds.append(rounds[-1].next())
    stages = (stage for r in rounds for step in r.steps if r.has(step.name) for stage in r.stages(step.name))
    ends = [",".join(config.rounds.stop)] if config.rounds.n > 1 else []  # which rounds there are
    return make_id(run.name, *(stage.fingerprint for stage in stages), *ends)
