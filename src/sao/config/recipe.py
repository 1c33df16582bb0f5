"""The whole recipe: a YAML file and dotted overrides in, one validated, frozen `Config` out."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from sao.config.chat import ChatConfig
from sao.config.engine import EngineConfig
from sao.config.evaluation import EvaluationConfig
from sao.config.filters import FiltersConfig
from sao.config.judging import JudgingConfig
from sao.config.pairs import PairsConfig
from sao.config.personas import PersonasConfig
from sao.config.prompts import PromptsConfig
from sao.config.ray import RayConfig
from sao.config.responses import ResponsesConfig
from sao.config.rounds import RoundsConfig
from sao.config.section import Section, field_names, section_of, setting
from sao.config.training import TrainConfig
from sao.errors import ConfigError


class Config(Section):
    """A whole recipe."""

    model: str = "builtin:world"
    """The chat model to align: builtin:world, a folder, or a hub id."""
    revision: str | None = None
    """Revision of the hub model."""
    seed: int = Field(default=0, ge=0)
    """The run's seed: every request's own seed follows from it."""
    max_drop_share: float = setting(
        default=0.5, ge=0, le=1, affects_records=False, because="when the run ends with an error"
    )
    """A stage that drops a larger share of its items than this ends the run with the commonest reasons."""
    chat: ChatConfig = ChatConfig()
    """How chats with the model are written."""
    engine: EngineConfig = EngineConfig()
    """What runs the model."""
    personas: PersonasConfig = PersonasConfig()
    """Who asks."""
    prompts: PromptsConfig = PromptsConfig()
    """How prompts are written."""
    filters: FiltersConfig = FiltersConfig()
    """Which of them are dropped."""
    responses: ResponsesConfig = ResponsesConfig()
    """How they are answered."""
    judging: JudgingConfig = JudgingConfig()
    """How answers are compared."""
    pairs: PairsConfig = PairsConfig()
    """Which comparisons are learnt from."""
    train: TrainConfig = TrainConfig()
    """How the model is trained on them."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How the result is measured."""
    rounds: RoundsConfig = RoundsConfig()
    """The loop again, with the trained model."""
    ray: RayConfig = setting(default=RayConfig(), affects_records=False, because="where work is done")
    """The machines that it runs on."""

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.judging.method == "given" and self.pairs.imported is None:
            raise ValueError(
                "judging.method given belongs to runs that `sao import` made: only they have given labels"
            )
        if self.judging.method == "checks" and self.prompts.checkable == 0:
            raise ValueError(
                "judging.method checks compares answers by the constraints of checkable prompts: give "
                "prompts.checkable, the share of the prompts that have some, such as 1"
            )
        if self.personas.n == 0 and self.pairs.source is None:
            raise ValueError(
                "personas.n is 0, so nobody asks: give at least 1, or a data set with pairs.source"
            )
        return self

    @model_validator(mode="after")
    def _check_template(self) -> Config:
        """A server applies its own chat template, whatever file is here."""
        if self.chat.template is None:
            return self
        panel = {f"judging.panel.{i}.engine": one.engine for i, one in enumerate(self.judging.panel)}
        judges = {"judging.engine": self.judging.engine, **panel}
        engines: dict[str, EngineConfig | None] = {
            "engine": self.engine, "evaluation.engine": self.evaluation.engine,
            **{key: judge for key, judge in judges.items() if judge and judge.model in (None, self.model)},
        }  # fmt: skip
        for key, engine in engines.items():
            if engine is not None and engine.name == "openai":
                raise ValueError(
                    f"chat.template cannot be used with {key}.name openai: the server writes chats by its "
                    "own template. Start the server with that file (vLLM: --chat-template FILE) and take the "
                    "key out, or take another engine"
                )
        return self

    @model_validator(mode="after")
    def _check_rounds(self) -> Config:
        """Later rounds need a model that writes anew, and held-out prompts to compare the rounds on."""
        if self.rounds.n == 1:
            return self
        if self.engine.name == "openai":
            raise ValueError(
                f"rounds.n {self.rounds.n}: a server cannot be given the weights that a round trains. Take "
                "engine.name vllm or transformers, or run the rounds by hand: start the server with "
                "round-1/train-…/model and give it as --model to a run of its own"
            )
        if self.engine.vllm.lora is not None:
            raise ValueError(
                f"rounds.n {self.rounds.n}: engine.vllm.lora would be added to each round's trained model "
                "again. Merge the adapter into the model first, and give that as model"
            )
        if self.pairs.source is not None or self.pairs.imported is not None:
            raise ValueError(
                f"rounds.n {self.rounds.n}: the pairs are given, so a second round would train on the same "
                "ones. Take rounds.n 1"
            )
        if self.personas.held_out == 0:
            raise ValueError(
                f"rounds.n {self.rounds.n}: rounds are compared on held-out prompts, and personas.held_out "
                "is 0. Give some, such as 200"
            )
        if not self.evaluation.judged and self.evaluation.checkable == 0:
            raise ValueError(
                f"rounds.n {self.rounds.n}: nothing tells the best round. Give evaluation.judged true, "
                "or evaluation.checkable, the share of held-out prompts whose answers a program checks"
            )
        return self

    @model_validator(mode="after")
    def _check_servers_of_rounds(self) -> Config:
        """No server can be given a round's model, to judge with it or to be compared."""
        if self.rounds.n == 1:
            return self
        if self.evaluation.engine is not None and self.evaluation.engine.name == "openai":
            raise ValueError(
                f"rounds.n {self.rounds.n}: evaluation.engine.name openai cannot be given a round's weights. "
                "Take vllm or transformers"
            )
        panel = {f"judging.panel.{i}.engine": one.engine for i, one in enumerate(self.judging.panel)}
        for key, engine in {"judging.engine": self.judging.engine, **panel}.items():
            if engine is None or engine.model is not None or self.rounds.judge == "initial":
                continue
            if engine.name == "openai" or engine.vllm.lora is not None:
                what = "a server" if engine.name == "openai" else "an adapter made for the first model"
                raise ValueError(
                    f"rounds.judge {self.rounds.judge}: {key} is {what}, which cannot judge as a round's own "
                    "model. Take rounds.judge initial, or another engine"
                )
        return self

    @model_validator(mode="after")
    def _check_import(self) -> Config:
        """What was imported stays as it is: a run that asks for other records could never be finished."""
        if self.pairs.imported is None:
            return self
        fixed: dict[str, tuple[object, object]] = {
            "responses.n": (self.responses.n, 2),
            "prompts.source": (self.prompts.source, None),
        }
        if self.judging.method == "given":
            fixed["judging.orders"] = (self.judging.orders, "one")
        for key, (value, imported) in fixed.items():
            if value != imported:
                raise ValueError(
                    f"{key} is {value}, but this run's prompts, answers and labels are those of an imported "
                    f"data set, with {key} {imported or 'null'}. Leave it at that, or make a run of its own "
                    "from another recipe with another --out"
                )
        return self


def uses_ray(config: Config) -> bool:
    """Whether training runs on a cluster."""
    return config.ray.address is not None or (config.train.nodes or 1) > 1


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    return sorted(
        f.name.removesuffix(".yaml")
        for f in resources.files("sao.recipes").iterdir()
        if f.name.endswith(".yaml")
    )


def load_recipe(recipe: str | Path, overrides: Mapping[str, str] | None = None) -> Config:
    """The validated config of a shipped recipe (by name) or a YAML file (by path), with dotted overrides such
    as {"train.beta": "2.0"}, whose values are read as YAML.

    Raises ConfigError for an unknown recipe, unreadable YAML, an unknown key (naming the nearest) or a bad
    value.
    """
    where, text = _read(str(recipe))
    try:
        data = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {error}", key="recipe") from error
    if not isinstance(data, dict):
        raise ConfigError(
            f"{where}: a recipe is a mapping of keys to values, not {type(data).__name__}", key="recipe"
        )
    return make_config(overridden(data, overrides or {}), where)


def overridden(data: dict[str, Any], overrides: Mapping[str, str]) -> dict[str, Any]:
    """A recipe's nested dict with dotted overrides put in, whose values are read as YAML."""
    for dotted, value in overrides.items():
        _set(data, dotted, value)
    return data


def make_config(data: Mapping[str, Any], where: str = "config") -> Config:
    """A Config from nested dicts; `where` opens the error messages."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        lines = [_explain(e["loc"], e["type"], e["msg"], e.get("input")) for e in error.errors()]
        key = ".".join(map(str, error.errors()[0]["loc"])) or "recipe"
        raise ConfigError(f"{where}: " + "; ".join(lines), key=key) from error


def _read(recipe: str) -> tuple[str, str]:
    """Where a recipe stands and its text."""
    path = Path(recipe)
    if recipe in recipe_names():
        return f"recipe {recipe}", resources.files("sao.recipes").joinpath(f"{recipe}.yaml").read_text(
            "utf-8"
        )
    if not path.is_file():
        near = difflib.get_close_matches(recipe, recipe_names(), 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"no recipe {recipe!r}: it is no file, and the shipped ones are "
            f"{', '.join(recipe_names())}.{hint} A model of this name is given by --model {recipe}",
            key="recipe",
        )
    try:
        return str(path), path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}", key="recipe") from error


def _set(data: dict[str, Any], dotted: str, value: str) -> None:
    """Set data[a][b] for "a.b"."""
    *parents, last = dotted.split(".")
    for key in parents:
        child = data[key] = {} if data.get(key) is None else data[key]
        if not isinstance(child, dict):
            raise ConfigError(f"--{dotted}: {key} is a value, not a section.{nearest(dotted)}", key=dotted)
        data = child
    if is_text(dotted) and value != "null":
        data[last] = value  # a revision such as 12e4567 is no number
        return
    try:
        parsed = yaml.safe_load(value)
        # YAML 1.1 reads 1e-6 as a string.
        data[last] = float(parsed) if isinstance(parsed, str) and _is_number(parsed) else parsed
    except yaml.YAMLError as error:
        raise ConfigError(f"--{dotted} {value!r}: not a YAML value: {error}", key=dotted) from error


def is_text(dotted: str) -> bool:
    """Whether this key of a recipe holds free text."""
    section: Any = Config
    for key in dotted.split("."):
        field = getattr(section, "model_fields", {}).get(key)
        if field is None:
            return False
        section = section_of(field.annotation) or field.annotation
    return section in (str, str | None)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.lower() not in ("nan", "inf", "-inf", "infinity")


RENAMED = {
    "eval": "evaluation",
    "filters.against": "filters.decontaminate",
    "judging.opponents": "judging.comparisons_per_answer",
    "judging.min_mass": "judging.min_verdict_prob",
}
"""Keys of earlier versions, with what they are called now."""


def nearest(dotted: str) -> str:
    """The hint that names the key nearest to a mistyped one."""
    for old, new in RENAMED.items():
        if dotted == old or dotted.startswith(f"{old}."):
            return f" It is called {new}{dotted.removeprefix(old)} now."
    names = list(field_names(Config))
    by_last = {name.rsplit(".", 1)[-1]: name for name in reversed(names)}  # of equal ones the first section's
    near = difflib.get_close_matches(dotted, [*names, *{n.split(".")[0] for n in names}], 1, 0.6)
    if not near:
        near = [by_last[n] for n in difflib.get_close_matches(dotted.rsplit(".", 1)[-1], by_last, 1, 0.6)]
    return f" Did you mean {near[0]}?" if near else " `sao run --help-config` lists the keys."


def _explain(loc: tuple[int | str, ...], kind: str, message: str, given: object) -> str:
    dotted = ".".join(str(part) for part in loc)
    if kind == "extra_forbidden":
        return f"unknown key {dotted}.{nearest(dotted)}"
    message = message.removeprefix("Value error, ")
    return f"{dotted or 'recipe'}: {message}" + (
        f" (given: {given!r})" if not isinstance(given, dict) else ""
    )
