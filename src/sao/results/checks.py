"""What checkable prompts say: of a judge (`sao audit`), and of training (`sao run`)."""

from __future__ import annotations

from sao.results.base import Interval, Rate, Result


class KindAccuracy(Result):
    """One kind of constraint in the answers to training prompts."""

    kind: str
    """The kind (docs/checks.md)."""
    kept: Rate
    """Answers that keep it."""
    counted: bool
    """Whether it is counted: between 5 and 95 % of the answers keep it."""
    accuracy: Rate
    """Decided verdicts for the answer that keeps it, on pairs of which one does and that differ in no other
    constraint."""


class ChecksAudit(Result):
    """The first judge on pairs of answers that keep more or fewer constraints."""

    accuracy: Rate
    """Decided verdicts for the answer that keeps more of the counted constraints."""
    both_orders: Rate
    """The same for pairs, by the sum of both orders' log-odds (their verdicts, where there are none)."""
    kinds: list[KindAccuracy]
    """Every kind that was asked for, by name."""
    left_out: list[str]
    """Kinds that are not counted, since nearly all answers keep them, or nearly none."""


class CheckedGain(Result):
    """Shares of the counted constraints that held-out answers keep, before and after training; null where no
    prompt has counted ones (n is 0)."""

    n: int
    """Prompts."""
    before: float | None = None
    """Mean share that the base's answers keep."""
    after: float | None = None
    """Mean share that the trained model's answers keep."""
    gain: float | None = None
    """After less before, paired by prompt."""
    ci95: Interval | None = None
    """95 % interval of the gain, prompts resampled."""
    brevity: float | None = None
    """What brevity alone earns: the mean share that the base's answers keep when they are cut to the length
    of the trained model's, less `before`; 0 where they keep less."""
    beyond_brevity: float | None = None
    """The gain less what brevity alone earns."""
    beyond_ci95: Interval | None = None
    """95 % interval of that, prompts resampled."""
    constant: float | None = None
    """Mean share that a constant answer would keep (`sao.analysis.checked.CONSTANT`)."""


class KindGain(CheckedGain):
    """One kind of constraint in the answers to held-out prompts."""

    kind: str
    """The kind (docs/checks.md)."""
    trained: bool
    """Whether training prompts may have it."""
    counted: bool
    """Whether it is counted: the base's answers keep it in 5 to 95 % of cases."""


class Texts(Result):
    """The held-out answers of one model to checkable prompts: figures that show gaming."""

    words: float
    """Mean words of an answer."""
    repetition: float
    """Mean share of the 4-grams of an answer's words that repeat an earlier one."""
    finished: float
    """Share of the answers that are neither cut off nor empty."""
    distinct: float
    """Share of the answers that no other prompt's answer repeats word for word."""
    base_logprob: float | None = None
    """Mean log-probability of an answer's tokens by the base model, in nats a token; null where it was not
    measured (evaluation.base_logprobs)."""


class ChecksOutcome(Result):
    """Before and after on held-out checkable prompts; no judge has a part in it."""

    trained: CheckedGain
    """Prompts with kinds that training prompts may have."""
    unseen: CheckedGain
    """Prompts with kinds that training prompts never have."""
    kinds: list[KindGain]
    """Every kind that was asked for, by name."""
    left_out: list[str]
    """Kinds that are not counted, since nearly all of the base's answers keep them, or nearly none."""
    base: Texts
    """The base's answers."""
    tuned: Texts
    """The trained model's answers."""
