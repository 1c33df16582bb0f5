"""What the whole run will take on this machine: the items and tokens of `sao plan`, with the lengths, the
share of usable prompts and the speed that the preview measured."""

from __future__ import annotations

from sao.analysis.plan import Lengths, stages, together, training_seconds
from sao.config import Config
from sao.errors import SAOError
from sao.models.counting import read_shape
from sao.models.shapes import GPUS, Shape
from sao.preview.meter import Notebook
from sao.results.plan import PlannedStage
from sao.results.preview import AnswerFigures, PromptWay, RunCost, RunStage, StepCost


def spent(notebook: Notebook) -> list[StepCost]:
    """What the steps of the preview took."""
    return [
        StepCost(name=name, items=step["items"], tokens=step["tokens"], seconds=round(step["seconds"], 1))
        for name, step in notebook.steps.items()
    ]


def run_cost(
    config: Config, notebook: Notebook, way: PromptWay | None, answers: AnswerFigures | None, judge: str
) -> RunCost:
    """What a run of the recipe will take: `way` and `answers` were measured, `judge` is the step of the
    verdicts by the recipe's way."""
    known = RunCost(
        rounds=config.rounds.n, tokens_per_second=notebook.tokens_per_second(),
        seconds_per_verdict=notebook.seconds_each(judge),
    )  # fmt: skip

    def unknown(why: str) -> RunCost:
        return known.model_copy(update={"unknown": why})

    if way is None or answers is None or not answers.tokens:
        return unknown("the model wrote no prompts that could be answered")
    if config.engine.name == "scripted":
        return unknown("a scripted engine has no weights")
    try:
        shape = read_shape(config.model, config.revision)
    except SAOError as error:
        return unknown(f"the model's size is not known ({error})")
    lengths = Lengths(prompt=_prompt_tokens(notebook, way), response=max(1, round(answers.tokens)))
    found = [
        _measured(stage, config, shape, lengths, notebook, judge)
        for stage in _planned(config, way.share, shape, lengths)
    ]
    each = [stage.seconds for stage in found]
    total = sum(s for s in each if s is not None) if None not in each else None
    return known.model_copy(update={"stages": found, "seconds": total})


def _prompt_tokens(notebook: Notebook, way: PromptWay) -> int:
    return max(1, round(notebook.tokens_each(f"prompts, {way.name}") or 1))


def _planned(config: Config, share: float, shape: Shape, lengths: Lengths) -> list[PlannedStage]:
    """The stages of all rounds by `sao plan`: all personas write, and the usable prompts are answered."""
    people = config.personas
    kept = {"n": max(1, round(share * people.n)), "held_out": round(share * people.held_out)}
    usable = config.model_copy(update={"personas": people.model_copy(update=kept)})
    all_, later = (
        together(stages(c, shape, GPUS[0], 1, lengths, number=n) for n in range(1, c.rounds.n + 1))
        for c in (config, usable)
    )
    return [a if a.name in ("personas", "prompts") else b for a, b in zip(all_, later, strict=True)]


def _measured(
    stage: PlannedStage, config: Config, shape: Shape, lengths: Lengths, notebook: Notebook, judge: str
) -> RunStage:
    """A stage with its seconds at the measured speed."""
    speed, verdict = notebook.tokens_per_second(), notebook.seconds_each(judge)
    seconds, tokens = None, stage.written
    if stage.name == "training":
        reading, tokens = notebook.read_per_second(judge), stage.read
        if reading is not None:  # a token that is read takes 2 FLOP for each weight
            rate = 2 * shape.used * reading
            seconds = training_seconds(shape, config.train, stage.read, lengths, rate)
    elif "verdicts" in stage.name:
        seconds = None if verdict is None else stage.items * verdict
    elif speed is not None:
        seconds = stage.written / speed
    return RunStage(name=stage.name, items=stage.items, tokens=tokens, seconds=seconds)
