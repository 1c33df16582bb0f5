"""The result of `sao preview`: a few texts and verdicts of a model, what they say, and what to change."""

from __future__ import annotations

from typing import Literal

from sao.results.base import Rate, Result

GoldSource = Literal["constraints", "made up", "oracle"]


class ShownText(Result):
    """A text as the model wrote it."""

    text: str
    """The text, of which a Drop keeps the beginning only."""
    reason: str | None = None
    """Why it was dropped; null for a usable one."""


class PromptWay(Result):
    """One way to get prompts, tried on the same personas as the others."""

    name: str
    """What it is called here."""
    settings: dict[str, str]
    """Keys of the recipe that make it, with their values."""
    is_recipe: bool
    """Whether the recipe itself works this way."""
    asked: int = 0
    """Personas that were asked."""
    max_tokens: int = 0
    """Tokens at which a prompt was cut off here."""
    usable: int = 0
    """Prompts that are usable: read, and kept by the filters."""
    reasons: dict[str, int] = {}
    """The others, by reason."""
    words: float | None = None
    """Mean words of a usable prompt."""
    distinct: float | None = None
    """Share of the prompts that repeat no earlier one (before the filters); null without prompts."""
    texts: list[ShownText] = []
    """The first texts."""
    skipped: str | None = None
    """Why this way was not tried; null where it was."""

    @property
    def share(self) -> float:
        """The share of the personas with a usable prompt."""
        return self.usable / self.asked if self.asked else 0.0


class ShownAnswers(Result):
    """A prompt with its answers."""

    prompt: str
    """The prompt."""
    answers: list[ShownText]
    """Its answers."""


class AnswerFigures(Result):
    """Answers to the prompts of the best way."""

    prompts: int
    """Prompts that were answered."""
    asked: int
    """Answers that were asked for."""
    max_tokens: int
    """Tokens at which an answer was cut off here."""
    recipe_max_tokens: int
    """responses.max_tokens of the recipe."""
    cut: int
    """Answers that were cut off."""
    empty: int
    """Answers without text."""
    failed: int
    """Answers that the engine could not give."""
    words: float | None
    """Mean words of a finished answer."""
    tokens: float | None
    """Mean tokens of all answers; one that was cut off counts with what was written."""
    distinct: float | None
    """Share of the answers that repeat no earlier one."""
    looping: int
    """Answers that repeat themselves: more than a third of their runs of four words came before."""
    texts: list[ShownAnswers]
    """The first prompts with their answers."""


class GoldPairs(Result):
    """Pairs of answers of which a program knows the better one."""

    source: GoldSource
    """constraints: the model's own answers to prompts with checkable constraints; made up: texts by the
    constraints' own generators, where the model's answers hardly differed; oracle: the toy world's."""
    pairs: int
    """How many there are."""
    again: int = 0
    """Those of them with an answer that stands in an earlier one, too."""
    prompts: int
    """Prompts that were answered for them."""
    differing: int
    """Prompts of which some answers are better than others."""


class JudgeWay(Result):
    """One way to judge, on the same pairs as the others, each shown in both orders."""

    name: str
    """What it is called here."""
    settings: dict[str, str]
    """Keys of the recipe that make it, with their values."""
    is_recipe: bool
    """Whether the recipe itself judges this way."""
    pairs: int = 0
    """Pairs that were judged in both orders."""
    verdicts: int = 0
    """Verdicts that can be read."""
    unparseable: int = 0
    """Verdicts that cannot be read, those that the engine failed to give among them."""
    mass: float | None = None
    """Mean probability of the two verdict words together; null for verdicts read from text."""
    first_slot: float | None = None
    """Share of the verdicts for the answer that stands first (a tie counts half)."""
    flips: float | None = None
    """Share of the pairs whose winner changes with the order."""
    accuracy: Rate | None = None
    """Share of the gold pairs in which both orders together favour the better answer (a tie counts half)."""
    least: float | None = None
    """Lower end of the interval of accuracy that holds with 95 % for all ways together (Bonferroni): the best
    of several looks better than it is."""
    skipped: str | None = None
    """Why this way was not tried; null where it was."""


class StepCost(Result):
    """What one step of the preview took."""

    name: str
    """The step."""
    items: int
    """Texts or verdicts that came of it."""
    tokens: int
    """Tokens that were written."""
    seconds: float
    """Seconds, loading the model excluded."""


class RunStage(Result):
    """What a stage of the whole run will take on this machine."""

    name: str
    """The stage."""
    items: int
    """Prompts, answers, verdicts or pairs."""
    tokens: int
    """Tokens that are written; in training, tokens that are trained on."""
    seconds: float | None
    """Seconds at the speed that was measured; null where no speed is known."""


class RunCost(Result):
    """What the whole run will take on this machine."""

    stages: list[RunStage] = []
    """Its stages, all rounds together."""
    rounds: int = 1
    """Rounds of the recipe; a rule may end the run before the last."""
    seconds: float | None = None
    """Seconds of all stages in all rounds; null where one is not known."""
    tokens_per_second: float | None = None
    """Tokens written in a second, in the fastest step."""
    seconds_per_verdict: float | None = None
    """Seconds of one verdict by the recipe's way."""
    unknown: str | None = None
    """Why there is no estimate; null where there is one."""


class Change(Result):
    """Something to change, or to know, before a run."""

    rule: str
    """The rule that found it."""
    says: str
    """What was seen and what to do, in a sentence or two."""
    settings: dict[str, str] = {}
    """Keys of the recipe with new values; none where the recipe cannot help."""


class Preview(Result):
    """What a model does with a recipe, on a few personas."""

    kind: Literal["preview"] = "preview"
    """What this result is."""
    version: Literal[1] = 1
    """Version of the schema."""
    model: str
    """The model."""
    engine: str
    """What ran it."""
    folder: str
    """Where the records lie."""
    notes: list[str] = []
    """What was done in another way than the run does it."""
    problem: str | None = None
    """Why nothing could be looked at; null where something could."""
    prompts: list[PromptWay] = []
    """The ways to get prompts."""
    best: str | None = None
    """The way with the most usable prompts; null where there are none."""
    answers: AnswerFigures | None = None
    """The answers; null where there were no prompts."""
    gold: GoldPairs | None = None
    """The pairs of which the better answer is known."""
    judging: list[JudgeWay] = []
    """The ways to judge."""
    cpus: int = 1
    """CPUs of this machine."""
    other_load: float | None = None
    """CPUs that are busy with something else; null where no CPU runs the model."""
    quick_bfloat16: bool = False
    """Whether a CPU runs the model that multiplies matrices in bfloat16 (AVX512-BF16, AMX)."""
    loading: float = 0.0
    """Seconds that loading the model took."""
    seconds: float = 0.0
    """Seconds of this call."""
    spent: list[StepCost] = []
    """What the steps of the preview took."""
    run: RunCost = RunCost()
    """What the whole run will take here."""
    changes: list[Change] = []
    """What to change."""
    recipe: str | None = None
    """The recipe with these changes; null where none was written."""
