"""What came of each round of a run: part of the summary of `sao run`, and round.json in each round's
folder."""

from __future__ import annotations

from sao.results.base import Interval, Rate, Result


class Answers(Result):
    """A model's answers to the held-out prompts, as texts."""

    words: float
    """Mean words of an answer."""
    distinct_2: float | None
    """Different word pairs over all word pairs of all answers; null where there are none."""
    repetition: float
    """Mean share of an answer's 4-grams of words that occur in it before."""
    cut_off: float
    """Share of the answers that were cut off at the token limit, or are empty."""


class Against(Result):
    """The round's model against an earlier one on the held-out prompts. CIRCULAR: the judge that the run
    began with, in both orders."""

    n: int
    """Prompts with a readable verdict."""
    win_rate: float | None
    """Mean points of the round's model from 0 to 1; null where no verdict is readable."""
    ci95: Interval | None
    """95 % interval of the win rate, prompts resampled."""


class Gold(Result):
    """What can be measured without a judge on the held-out prompts: constraints kept, else the toy world's
    oracle."""

    n: int
    """Prompts that were measured."""
    before: float | None
    """Mean score of the model that the run began with, from 0 to 1."""
    after: float | None
    """Mean score of the round's model."""
    gain: float | None
    """After less before, paired by prompt."""
    ci95: Interval | None
    """95 % interval of the gain, prompts resampled."""
    step: float | None
    """The round's model less the one before it, paired by prompt."""
    step_ci95: Interval | None
    """95 % interval of that."""


class RoundJudge(Result):
    """The first judge on the round's own pairs of answers; with rounds.judge both, the round's own model."""

    first_slot_rate: float | None
    """Share of the decided verdicts for the answer shown first; 0.5 is fair."""
    flip_rate: float | None
    """Share of the pairs decided in both orders whose winner changes with the order."""
    agreement: Rate | None
    """Pairs on which it names the answer that the judge of the round before names (rank consistency, arXiv
    2410.12735), or with rounds.judge both the model that the run began with; null where both are the same."""


class RoundResult(Result):
    """One round."""

    round: int
    """Its number, from 1."""
    model: str
    """Folder of the model that it trained, below the run folder."""
    prompts: int
    """Prompts that were answered for training."""
    pairs: int
    """Pairs that it made."""
    kept_share: float | None
    """Clear pairs over those of these prompts whose answers differ; clear ones that are left out since the
    rejected answer is no older model's (rounds.rejected initial) are among them."""
    identical: float | None
    """Share of the pairs whose two answers are the same text: it rises where a policy becomes sure."""
    margin: float | None
    """Mean log-odds between two answers that differ, without their sign, in nats, over all that the judge
    could read; null where it gives no numbers."""
    chosen_logp: float | None
    """Mean log-probability of the chosen answers in the last quarter of the training, nats a token."""
    rejected_logp: float | None
    """The same of the rejected ones."""
    gap: float | None = None
    """The first less the second."""
    base: Answers
    """The first model's answers."""
    answers: Answers
    """This round's model's."""
    initial: Against | None
    """Against the model that the run began with; null where the recipe has no judge of the comparison."""
    previous: Against | None
    """Against the model of the round before."""
    checks: Gold | None
    """Constraints kept on held-out checkable prompts; null where the recipe has none."""
    oracle: Gold | None
    """The toy world's oracle, which no rule looks at; null elsewhere."""
    judge: RoundJudge | None
    """The judge in this round; null where no model judges."""
    stopped_by: list[str] = []
    """What ended the run after this round, a sentence for each rule."""
