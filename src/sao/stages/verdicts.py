"""Verdicts read: log-probabilities, sampled texts and what a function returned in, a verdict out, or None for
what cannot be read. Pure functions, and the `Judgment` that a verdict becomes."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, cast

from sao.records import Judgment, Verdict
from sao.stages.answer_pairs import OrderedPair
from sao.stages.calibration import LIMIT, sigmoid

Read = tuple[Verdict | None, float | None, float | None]
"""A verdict, P(first | a verdict's word), and the probability of the verdict's words together."""


def judgment_of(
    pair: OrderedPair, name: str, verdict: Verdict | None, p_first: float | None = None,
    verdict_prob: float | None = None,
    text: str | None = None,
) -> Judgment:  # fmt: skip
    """The record of a verdict by the judge `name`."""
    return Judgment(
        id=pair.id,
        row=pair.row,
        prompt_id=pair.prompt_id,
        first_id=pair.first.id,
        second_id=pair.second.id,
        judge=name,
        verdict=verdict,
        p_first=p_first,
        verdict_prob=verdict_prob,
        text=text,
    )


def verdict_by(first: float, second: float) -> Verdict:
    """The verdict of two numbers of which the higher is the better."""
    return "tie" if first == second else "first" if first > second else "second"


def read_logprobs(first: float, second: float, min_verdict_prob: float) -> Read:
    """Verdict, P(first | a verdict token) and their verdict_prob, from two log-probabilities in nats.

    A verdict_prob below `min_verdict_prob`, or a value that is no number, is unparseable.
    """
    if math.isnan(first) or math.isnan(second) or max(first, second) == -math.inf:
        return None, None, None
    verdict_prob = math.exp(first) + math.exp(second)
    gap = second - first
    p_first = 1 / (1 + math.exp(gap)) if gap < 700 else 0.0
    if verdict_prob < min_verdict_prob:
        return None, p_first, verdict_prob
    return verdict_by(first, second), p_first, verdict_prob


def mean_verdict(parts: Sequence[tuple[float, float]], min_verdict_prob: float) -> Read:
    """The verdict of several wordings: each part has log-odds for the first answer (nats; NaN: none) and the
    probability of the verdict's words.

    The mean of the log-odds counts, not their sum: one model's wordings do not err independently, and so p
    stays as sure as one wording is. A part below `min_verdict_prob` is left out; where all are, the verdict
    is unparseable.
    """
    known = [(odds, prob) for odds, prob in parts if not (math.isnan(odds) or math.isnan(prob))]
    if not known:
        return None, None, None
    readable = [odds for odds, prob in known if prob >= min_verdict_prob]
    counted = readable or [odds for odds, _ in known]
    mean = fmean(max(-LIMIT, min(LIMIT, odds)) for odds in counted)
    verdict = verdict_by(mean, 0.0) if readable else None
    return verdict, sigmoid(mean), fmean(prob for _, prob in known)


def log_odds_of(logprobs: Sequence[float]) -> tuple[float, float]:
    """Log-odds (nats) of the first of two words against the second, and the probability of both together; NaN
    where there is none."""
    first, second = logprobs[0], logprobs[1]
    if math.isnan(first) or math.isnan(second) or max(first, second) == -math.inf:
        return math.nan, math.nan
    return first - second, math.exp(first) + math.exp(second)


def majority(verdicts: Sequence[Verdict | None]) -> Read:
    """The verdict of several samples, by majority (self-consistency, Wang et al., arXiv 2203.11171); a tie
    where both answers have as many.

    P(first) is the share of the samples that name the first answer, a tie counting half, with half a sample
    added on each side: never certain. Those that cannot be read are left out of it; the third value is the
    share of those that can.
    """
    votes = Counter(verdict for verdict in verdicts if verdict is not None)
    readable = votes.total() / len(verdicts)
    if not votes:
        return None, None, readable
    first, second = (votes[name] + 0.5 * votes["tie"] for name in ("first", "second"))
    return verdict_by(first, second), (first + 0.5) / (votes.total() + 1), readable


def read_preference(said: Any) -> Verdict | None:
    """The verdict in what a function returns for two answers: two scores, the higher the better, or the
    verdict itself. None, or NaN or None among the scores, is an unparseable one.

    Raises TypeError for anything else.
    """
    if said is None or (isinstance(said, str) and said in ("first", "second", "tie")):
        return cast("Verdict | None", said)
    scores = list(said) if not isinstance(said, str | bytes | Mapping) else []
    if len(scores) != 2:
        raise TypeError(f"it returned {said!r}, neither two scores nor first, second, tie or None")
    if None in scores:
        return None
    first, second = (float(score) for score in scores)
    if math.isnan(first) or math.isnan(second):
        return None
    return verdict_by(first, second)


def read_ranking(text: str, choices: tuple[str, str], reasoning: bool = False) -> Verdict | None:
    """The verdict of a ranking line "X > Y" or "X = Y" (a tie), X and Y being the two choices.

    Without `reasoning` the text is that line and nothing else. With it the last line that is not empty must
    be a ranking line, and no other line may be a different one. Anything else is unparseable.
    """
    lines = [line for line in text.splitlines() if line.strip()] if reasoning else [text.strip()]
    verdicts = [_ranking_line(line, choices) for line in lines]
    if not verdicts or verdicts[-1] is None:
        return None
    return verdicts[-1] if set(verdicts) <= {verdicts[-1], None} else None


def _ranking_line(line: str, choices: tuple[str, str]) -> Verdict | None:
    first, second = (re.escape(choice.strip()) for choice in choices)
    match = re.fullmatch(
        rf"(?:({first})[ \t]*([>=])[ \t]*{second}|{second}[ \t]*([>=])[ \t]*{first})", line.strip()
    )
    if match is None:
        return None
    if "=" in (match[2], match[3]):
        return "tie"
    return "first" if match[1] is not None else "second"
