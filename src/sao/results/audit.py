"""The result of `sao audit`: what a run's judges are worth."""

from __future__ import annotations

from typing import Literal

from sao.results.base import Interval, Rate, Result
from sao.results.checks import ChecksAudit


class LogOdds(Result):
    """A coefficient of the logistic regression of the verdicts."""

    log_odds: float
    """Log-odds that the first answer wins."""
    se: float
    """Standard error, verdicts of a prompt being one cluster."""


class Effects(Result):
    """What decides the verdicts: a logistic regression on the decided ones."""

    slot: LogOdds
    """The constant: what standing first is worth (position bias)."""
    length: LogOdds | None = None
    """For each doubling of the length; null where all answers are equally long."""
    quality: LogOdds | None = None
    """For the whole scale of gold; null where gold is known for fewer than 30 verdicts."""
    converged: bool
    """False where one cause decides alone, so that there is no finite fit."""
    n: int
    """Verdicts in the regression."""


class JudgeAudit(Result):
    """One judge's rates and biases."""

    verdicts: int
    """Verdicts, unparseable ones among them."""
    accuracy: Rate
    """Decided verdicts that gold agrees with, where gold sees a difference."""
    first_slot_rate: Rate
    """Decided verdicts for the answer shown first; 0.5 is fair."""
    flip_rate: Rate
    """Pairs decided in both orders whose winner changes with the order; 0.5 is a coin's."""
    unparseable_rate: Rate
    """Verdicts that could not be parsed."""
    tie_rate: Rate
    """Readable verdicts that are ties."""
    longer_wins_rate: Rate
    """Decided verdicts for the longer answer, equally long ones left out."""
    intransitive_rate: Rate
    """Groups of three compared answers whose verdicts go in a circle."""
    position_bias_nats: float
    """The judge's position bias by its calibration: log-odds for the first slot, in nats."""
    temperature: float
    """The calibration's temperature; above 1 the judge is overconfident."""
    order_agreement: float | None
    """Share of the pairs on which both orders agree once the position bias is taken away."""
    effects: Effects | None
    """What decides the verdicts; null for fewer than 30 decided verdicts."""


class KeptLabels(Result):
    """The pairs that were kept, and how good their labels are."""

    pairs: int
    """Kept pairs."""
    share: float | None
    """Kept pairs over the possible ones; null where none is possible."""
    label_accuracy: Rate
    """Kept pairs whose chosen answer gold scores higher, where gold sees a difference."""
    longer_chosen_rate: Rate
    """Kept pairs whose chosen answer is the longer one, equally long ones left out."""
    by_people: Rate | None = None
    """Kept pairs whose chosen answer people prefer, of those that they labelled; null without labels."""


class CalibrationBin(Result):
    """Pairs of about the same calibrated probability."""

    p: float
    """Mean probability that the label is right."""
    accuracy: float
    """Share of labels that gold agrees with."""
    n: int
    """Pairs in the bin."""


class CalibrationError(Result):
    """How far the calibrated probabilities are from the measured accuracy."""

    bins: list[CalibrationBin]
    """Ten bins of equal width from 0.5 to 1, empty ones left out."""
    expected_error: float
    """Expected calibration error: mean distance of p and accuracy over the pairs."""
    n: int
    """Pairs with a probability and a gold verdict."""


class Coverage(Result):
    """What would be kept at one least probability."""

    min_p: float
    """Least probability of a pair (pairs.min_p)."""
    share: float
    """Pairs that pass over the possible ones."""
    accuracy: Rate
    """Pairs that pass whose label gold agrees with."""
    expected: float | None
    """Mean calibrated probability of the pairs that pass: the accuracy to be expected."""


class Agreement(Result):
    """How often another judge, or people, say the same as the first judge."""

    pairs: int
    """Pairs on which both say something."""
    agreement: float | None
    """Share of them on which they say the same."""
    ci95: Interval
    """95 % interval of the agreement; the unit is the prompt."""
    kappa: float | None
    """Cohen's κ over first, second and tie; null where chance explains all."""
    agreement_where_both_decide: float | None = None
    """Agreement on the pairs on which neither says tie."""


class SelfTest(Rate):
    """The judge on answers against a changed copy: the share of verdicts for the answer as it was."""

    flips: Rate | None = None
    """Pairs whose verdict changes with the order, of those read in both orders; null for an answer against
    itself, whose orders are one."""


class Audit(Result):
    """What a run's judges are worth."""

    kind: Literal["audit"] = "audit"
    """What this result is."""
    version: Literal[1] = 1
    """Version of the schema."""
    verdict: str
    """How good the judge is, and what to keep of its verdicts, in a sentence."""
    judge: JudgeAudit
    """The first judge."""
    panel: dict[str, JudgeAudit]
    """The further judges by name."""
    kept: KeptLabels
    """The pairs that were kept."""
    checks: ChecksAudit | None = None
    """The first judge on constraints; null where no prompt has any."""
    same_answers: Rate
    """Prompts of which all answers are the same."""
    calibration: CalibrationError | None
    """Probability against accuracy; null without gold or without probabilities."""
    coverage: list[Coverage]
    """Share and accuracy by least probability, from 0.5 upwards."""
    agreement: dict[str, Agreement]
    """By whoever else judged the same answers: panel, other recipes in the folder, people."""
    self_tests: dict[str, SelfTest] | None = None
    """By change (identical, padded, truncated, shuffled); null where they were not asked for."""
