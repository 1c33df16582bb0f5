"""The result of `sao eval --base --tuned`: two models compared, and results.json in its folder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sao.results.audit import SelfTest
from sao.results.base import Interval, Result


class EffectSize(Result):
    """A mean over questions, or a difference of two, with its test."""

    value: float
    """The mean, the score or the difference; shares are from 0 to 1."""
    ci95: Interval
    """95 % interval, questions resampled."""
    p: float
    """p value that there is no effect (win rate 0.5, difference 0)."""
    n: int
    """Questions."""
    detectable: float | None
    """Smallest true effect that so many questions find with a power of 80 %; null where the values have no
    spread."""
    p_holm: float | None = None
    """p corrected (Holm) over the main scores of all suites and tasks of the call; null for other scores."""


class FittedScore(Result):
    """A score that is fitted again in each resample: length-adjusted win rate, Bradley–Terry score."""

    value: float
    """The score, from 0 to 1."""
    ci95: Interval
    """95 % interval, questions resampled and all refitted."""
    name: str
    """What the score is called."""
    delta: EffectSize | None = None
    """Of tuned: the difference to base, or to a half where base is what tuned is compared with; null where
    both do not stand on the same questions."""


class LengthBin(Result):
    """Questions by how much longer our answer is than the other."""

    ratio: Interval
    """Least and largest ratio of the words in the bin."""
    win_rate: float
    """Mean points from 0 to 1."""
    n: int
    """Questions in the bin."""


class WinRate(Result):
    """One model against another on a suite's questions."""

    win_rate: EffectSize | None
    """The win rate against 0.5; null where no verdict is readable."""
    win: int
    """Questions won, both orders averaged."""
    tie: int
    """Questions that neither wins."""
    loss: int
    """Questions lost."""
    unparseable: int
    """Verdicts that could not be parsed or were not given; they are no ties."""
    verdicts: int
    """Verdicts that the judge was asked for."""
    lost: int
    """Questions without a readable verdict."""
    bounds: tuple[float | None, float | None]
    """The win rate if all unparseable verdicts had been lost, and won."""
    first_slot_rate: float | None
    """Share of the decided verdicts for the answer shown first."""
    flip_rate: float | None
    """Share of the questions decided in both orders in which the same slot won twice."""
    by_length: list[LengthBin]
    """Win rate by length ratio."""
    words: tuple[float | None, float | None]
    """Mean words of our answers, and of theirs."""
    warnings: list[str]
    """Sentences on the judge's position bias."""
    adjusted: FittedScore | None = None
    """Length-adjusted win rate."""
    arena: FittedScore | None = None
    """Bradley–Terry score (suite arena)."""
    arena_style: FittedScore | None = None
    """The same with style controlled (suite arena)."""


class MeanMark(Result):
    """The mean of the marks."""

    value: float
    """Mean mark from 1 to 10."""
    ci95: Interval
    """95 % interval, questions resampled."""
    n: int
    """Questions."""


class Marks(Result):
    """One model's marks on a suite's questions."""

    mark: MeanMark | None
    """The mean; null where no mark is readable."""
    unparseable: int
    """Marks that could not be parsed or were not given."""
    verdicts: int
    """Marks that the judge was asked for."""
    lost: int
    """Questions without a readable mark."""
    bounds: tuple[float | None, float | None]
    """The mean if all unparseable marks had been the worst, and the best."""


class CategoryMean(Result):
    """The questions of one category."""

    mean: float
    """Mean of the points or marks."""
    n: int
    """Questions."""


class _SuiteResult(Result):
    title: str
    """The suite's name in tables."""
    n: int
    """Questions."""
    questions: str
    """Where they come from."""
    template: str
    """What the judge was shown; empty where nothing is judged."""
    degenerate: dict[str, list[str]]
    """By role: what is wrong with a model's answers as a whole, in sentences."""
    cut_off: dict[str, int]
    """By role: answers that were cut off at the token limit."""
    missing: dict[str, int]
    """By role: questions without an answer."""
    by_category: dict[str, dict[str, CategoryMean]]
    """By role and category: means; empty where the set has no categories."""
    delta: EffectSize | None = None
    """The main score of tuned less that of base (of tuned less a half where base is what it is compared
    with); null where there is none."""


class PairedSuite(_SuiteResult):
    """A suite whose answers are compared in pairs."""

    way: Literal["pairs"] = "pairs"
    """How the suite is judged."""
    against: Literal["base", "reference"]
    """Whose answers the models are compared with."""
    base: WinRate | None = None
    """Base against the reference; null where tuned is compared with base."""
    tuned: WinRate
    """Tuned against the reference, or against base."""


class MarkedSuite(_SuiteResult):
    """A suite whose answers get marks."""

    way: Literal["marks"] = "marks"
    """How the suite is judged."""
    base: Marks
    """Marks of base."""
    tuned: Marks
    """Marks of tuned."""
    reference: Marks | None = None
    """Marks of the reference; null without one."""


class Share(Result):
    """Points earned of those that there were."""

    value: float
    """From 0 to 1."""
    ci95: Interval
    """95 % interval, questions resampled."""
    n: int
    """Questions."""


class ScoreComparison(Result):
    """One figure of a suite with known answers, before and after."""

    name: str
    """The figure's name."""
    title: str
    """What it is called in tables."""
    higher_is_better: bool
    """Whether a higher figure is better."""
    base: Share | None
    """Base; null where it answered none of the questions."""
    tuned: Share | None
    """Tuned."""
    delta: EffectSize | None
    """Tuned less base on the questions that both answered; null where there are none."""


class KnownSuiteResult(_SuiteResult):
    """A suite whose answers a program checks."""

    way: Literal["known"] = "known"
    """How the suite is judged."""
    scores: list[ScoreComparison]
    """Its figures, the main one first."""


class AnswersOnly(_SuiteResult):
    """A suite whose answers were written down to be read, and not judged."""

    way: Literal["answers"] = "answers"
    """How the suite is judged."""
    file: str
    """The file of the answers, in the evaluation's folder."""


SuiteResult = Annotated[
    PairedSuite | MarkedSuite | KnownSuiteResult | AnswersOnly, Field(discriminator="way")
]


class TaskComparison(Result):
    """One task of lm-evaluation-harness before and after."""

    task: str
    """Name of the task or group."""
    shots: int
    """Examples shown."""
    metric: str
    """NAME,FILTER of the answer."""
    higher_is_better: bool
    """Whether a higher figure is better."""
    n: int
    """Documents."""
    base: float
    """Figure of base."""
    tuned: float
    """Figure of tuned."""
    difference: float
    """Tuned less base."""
    ci95: Interval
    """95 % interval of the difference, documents resampled."""
    detectable: float | None
    """Smallest true difference that so many documents find with a power of 80 %; null where the differences
    have no spread."""
    only_base: int | None
    """Documents that only base gets right; null where the metric is no accuracy."""
    only_tuned: int | None
    """Documents that only tuned gets right."""
    p: float
    """McNemar's exact test for accuracies, else random sign flips."""
    p_holm: float
    """p corrected (Holm) over all that the call compares."""
    cut: int = 0
    """Requests that were too long for a model's context and lost their beginning; of the model with more."""


class TaskAverage(Result):
    """The mean over all tasks."""

    base: float
    """Of base."""
    tuned: float
    """Of tuned."""


class JudgingSettings(Result):
    """How the judge was asked."""

    method: str
    """judging.method."""
    template: str
    """judging.template."""
    choices: tuple[str, str]
    """What a verdict begins with."""
    prefill: str
    """The beginning of the judge's reply."""
    temperature: float
    """Sampling temperature of text verdicts."""
    min_verdict_prob: float
    """Least probability of the verdict tokens together."""
    wordings: list[str] = []
    """judging.wordings."""
    content_free: bool = False
    """judging.content_free."""
    samples: int = 1
    """judging.samples."""


class SamplingSettings(Result):
    """How the questions were answered."""

    system: str | None
    """System message."""
    temperature: float
    """Sampling temperature."""
    top_p: float
    """Nucleus share."""
    max_tokens: int
    """Longest answer, in tokens."""


class MadeWith(Result):
    """What the figures depend on."""

    weights: dict[str, str]
    """By role: identity of the weights."""
    judge: str
    """Identity of the judge."""
    judging: JudgingSettings
    """How the judge was asked."""
    sampling: SamplingSettings
    """How the questions were answered."""
    engine: dict[str, str]
    """By role: the engine."""
    seed: int
    """The seed."""
    resamples: int
    """Resamples of the intervals."""
    packages: dict[str, str | None]
    """Versions by package; null where it is not installed."""


class Evaluation(Result):
    """Two models compared on suites and tasks."""

    kind: Literal["evaluation"] = "evaluation"
    """What this result is."""
    version: Literal[1] = 1
    """Version of the schema."""
    base: str
    """The untrained model."""
    tuned: str
    """The trained model."""
    reference: str | None = None
    """A third whose answers both are compared with; null where tuned is compared with base."""
    judge: str | None = None
    """The judge's name; null where nothing is judged."""
    label: Literal["CIRCULAR", "WARNING", ""] = ""
    """Whether the judge is related to the models."""
    why: str = ""
    """The reason for the label."""
    headline: bool
    """Whether judged figures are shown; false for a circular judge, unless asked for."""
    made_with: MadeWith
    """What the figures depend on."""
    suites: dict[str, SuiteResult]
    """The suites by name."""
    self_tests: dict[str, SelfTest] | None = None
    """The judge on made-up pairs, by change; null where it was not tried."""
    tasks: list[TaskComparison] = []
    """The tasks of lm-evaluation-harness."""
    task_average: TaskAverage | None = None
    """The mean over the tasks; null without tasks."""
