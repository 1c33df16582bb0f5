"""The result of a run: `sao run --json`, and summary.json in the run folder."""

from __future__ import annotations

from typing import Literal

from sao.results.base import Interval, Result, StageCounts
from sao.results.checks import ChecksOutcome
from sao.results.rounds import RoundResult


class JudgeFigures(Result):
    """The first judge's verdicts in five figures; the audit has more, with intervals."""

    verdicts: int
    """Verdicts, unparseable ones among them."""
    unparseable: int
    """Verdicts that could not be parsed."""
    first_slot_rate: float | None
    """Share of the decided verdicts for the answer shown first; 0.5 is fair."""
    flip_rate: float | None
    """Share of the pairs decided in both orders whose winner changes with the order."""
    accuracy: float | None
    """Share of the decided verdicts that the oracle agrees with; null without an oracle."""


class KeptPairs(Result):
    """The pairs that were kept for training."""

    share: float | None
    """Kept pairs over the possible ones; null where none is possible."""
    label_accuracy: float | None
    """Share of the kept pairs whose chosen answer the oracle scores higher; null without an oracle."""


class CutOff(Result):
    """Held-out answers that were cut off at the token limit, or empty."""

    base: int
    """Of the untrained model."""
    tuned: int
    """Of the trained model."""


class Wins(Result):
    """Wins and losses of the trained model against its base. Figures are null where no verdict is readable
    (n is 0)."""

    n: int
    """Prompts with a readable verdict; equal answers are ties."""
    win: int = 0
    """Prompts that the trained model wins, both orders averaged."""
    tie: int = 0
    """Prompts that neither wins."""
    loss: int = 0
    """Prompts that it loses."""
    win_rate: float | None = None
    """Mean points of the trained model from 0 to 1; a tie is half a point."""
    ci95: Interval | None = None
    """95 % interval of the win rate, prompts resampled."""
    p: float | None = None
    """p value that the win rate is 0.5 (sign flips)."""
    detectable: float | None = None
    """Smallest true distance from 0.5 that so many prompts find with a power of 80 %."""
    bounds: Interval | None = None
    """The win rate if all unparseable verdicts had been lost, and won."""
    first_slot_rate: float | None = None
    """Share of the decided verdicts for the answer shown first."""
    unparseable: int
    """Verdicts that could not be parsed; they are no ties."""


class HeldOut(Wins):
    """The comparison on held-out prompts by the run's judge."""

    label: str
    """Who judged, and that the result is circular."""
    words_base: float
    """Mean words of an answer of the base."""
    words_tuned: float
    """Mean words of an answer of the trained model."""
    seen_in_training: int
    """Held-out prompts whose text is also a training prompt."""
    cut_off: CutOff
    """Answers that were cut off or empty; they count as they stand."""


class Gain(Result):
    """Mean oracle scores before and after training; null where no prompt can be scored (n is 0)."""

    before: float | None = None
    """Mean score of the base's answers, from 0 to 1."""
    after: float | None = None
    """Mean score of the trained model's answers."""
    gain: float | None = None
    """After less before, paired by prompt."""
    ci95: Interval | None = None
    """95 % interval of the gain, prompts resampled."""
    n: int
    """Prompts that were scored."""
    not_of_this_world: int
    """Prompts that the oracle does not know."""


class OracleWins(Result):
    """The win rate by the oracle's scores, to set beside the judge's."""

    n: int
    """Prompts that were scored."""
    win: int = 0
    """Prompts on which the trained model's answer scores higher."""
    tie: int = 0
    """Prompts on which both score the same."""
    loss: int = 0
    """Prompts on which the base's answer scores higher."""
    win_rate: float | None = None
    """Mean points from 0 to 1; a tie is half a point."""
    ci95: Interval | None = None
    """95 % interval of the win rate, prompts resampled."""
    agreement: float | None = None
    """Share of the prompts which judge and oracle both decide on which they name the same side."""
    both: int = 0
    """Prompts which judge and oracle both decide."""


class OracleOutcome(Gain):
    """The oracle's measure on all held-out prompts."""

    verdict: OracleWins
    """The same as wins and losses."""
    unseen: Gain
    """The gain on those held-out prompts whose text is in no training prompt."""


class Example(Result):
    """A held-out prompt with the answers of both models."""

    prompt: str
    """The prompt, or the whole conversation before the answer."""
    before: str
    """The base's answer."""
    after: str
    """The trained model's answer."""


class Spent(Result):
    """What a server was asked in this run folder, all calls together."""

    requests: int
    """HTTP requests."""
    retries: int
    """Requests that failed and were sent again."""
    prompt_tokens: int
    """Tokens read, as the server reports them."""
    completion_tokens: int
    """Tokens written, as the server reports them."""
    cost: float
    """Price of the tokens by engine.openai.price_prompt and price_completion, in their currency."""


class Summary(Result):
    """What came of a run."""

    kind: Literal["summary"] = "summary"
    """What this result is."""
    version: Literal[1] = 1
    """Version of the schema."""
    model: str
    """The model that was aligned: folder, hub id, or builtin:world."""
    seed: int
    """The run's seed."""
    judging: str
    """judging.method of the recipe."""
    worked: bool
    """Whether this call did anything; false where the run was finished before."""
    funnel: list[StageCounts]
    """The finished stages in order."""
    judge: JudgeFigures | None = None
    """The first judge; null before the stage judge, and where pairs were given."""
    kept: KeptPairs | None = None
    """The pairs that were kept; null before the stage pairs, and where pairs were given."""
    verdict: str | None = None
    """The audit's verdict on the judge in a sentence; null before the stage pairs, where pairs were given,
    and where there are too many verdicts to audit them in passing."""
    heldout: HeldOut | None = None
    """The comparison on held-out prompts; null before the stage eval, and without held-out prompts."""
    oracle: OracleOutcome | None = None
    """The oracle's measure of the same answers; null outside the toy world."""
    checks: ChecksOutcome | None = None
    """Constraints kept before and after on held-out checkable prompts; null without such prompts."""
    rounds: list[RoundResult] = []
    """The rounds, where the recipe has several; the rest of the summary is about the best of them."""
    best: int | None = None
    """The round whose model is paths.model; null for a single round, and while the rounds are not over."""
    stopped_by: list[str] = []
    """What ended the run before its last round, a sentence for each rule."""
    examples: list[Example] = []
    """Held-out prompts, the first few on which the models differ."""
    usage: Spent | None = None
    """What a server was asked; null where none was."""
    paths: dict[str, str]
    """Folders and files by name: run, pairs, log, model; only those that are there."""
    seconds: float | None = None
    """Wall-clock time of this call."""
