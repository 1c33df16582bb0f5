"""Trained model against base: comparisons and answers in, wins and gains with intervals out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal

from sao.records import Comparison, Judgment, PreferencePair, Response
from sao.results.summary import Gain, KeptPairs, OracleWins, Wins
from sao.statistics import bootstrap_ci, effect, mean, prompt_points

Oracle = Callable[[str, str], float | None]
"""The exact score of an answer to a prompt, None where the prompt is not of the oracle's world."""
POINTS = {"tuned": 1.0, "tie": 0.5, "base": 0.0}
"""The trained model's points for a comparison's winner."""


def comparison_of(judgment: Judgment, base_id: str) -> Comparison:
    """A judgment on a base and a tuned answer, said in those terms."""
    base_first = judgment.first_id == base_id
    p_tuned = judgment.p_first
    if p_tuned is not None and base_first:
        p_tuned = 1 - p_tuned
    winner: Literal["base", "tuned", "tie"] | None = None
    if judgment.verdict == "tie":
        winner = "tie"
    elif judgment.verdict is not None:
        winner = "base" if judgment.winner_id == base_id else "tuned"
    return Comparison(
        id=judgment.id,
        row=judgment.row,
        prompt_id=judgment.prompt_id,
        order="base_first" if base_first else "tuned_first",
        judge=judgment.judge,
        winner=winner,
        p_tuned=p_tuned,
    )


def win_summary(comparisons: Iterable[Comparison], identical: int, resamples: int, seed: int) -> Wins:
    """Wins, ties, losses and the win rate of the tuned model, orders averaged by prompt first; `identical`
    answers are ties.

    Unparseable verdicts are counted and left out, never taken for ties; `bounds` is the win rate if all had
    been lost, or won.
    """
    rows: list[tuple[str, str, float | None]] = [(f"identical {i}", "", 0.5) for i in range(identical)]
    decided = first_slot = 0
    for comparison in comparisons:
        winner, order = comparison.winner, comparison.order
        rows.append((comparison.prompt_id, order, None if winner is None else POINTS[winner]))
        if winner in ("tuned", "base"):
            decided += 1
            first_slot += (winner == "tuned") == (order == "tuned_first")
    points = prompt_points(rows)
    if not points.ids:
        return Wins(n=0, unparseable=points.unparseable)
    win_rate = effect(points.values, 0.5, (0.0, 1.0), resamples, seed)
    win, tie, loss = wins_ties_losses(points.values.tolist())
    return Wins(
        n=win_rate.n,
        win=win,
        tie=tie,
        loss=loss,
        win_rate=win_rate.mean,
        ci95=win_rate.interval,
        p=win_rate.p,
        detectable=win_rate.detectable if 0 < win_rate.detectable < math.inf else None,
        bounds=points.bounds,
        first_slot_rate=first_slot / decided if decided else None,
        unparseable=points.unparseable,
    )


def wins_ties_losses(points: Iterable[float]) -> tuple[int, int, int]:
    """How many prompts were won (more than half a point), tied and lost."""
    points = list(points)
    return sum(p > 0.5 for p in points), sum(p == 0.5 for p in points), sum(p < 0.5 for p in points)


def oracle_gain(rows: Iterable[tuple[str, str, str]], oracle: Oracle, resamples: int, seed: int) -> Gain:
    """Mean oracle scores of base and tuned on (prompt, base answer, tuned answer), and their paired
    difference."""
    before, after, unknown = [], [], 0
    for prompt, base, tuned in rows:
        base_score, tuned_score = oracle(prompt, base), oracle(prompt, tuned)
        if base_score is None or tuned_score is None:
            unknown += 1
        else:
            before.append(base_score)
            after.append(tuned_score)
    if not before:
        return Gain(n=0, not_of_this_world=unknown)
    gains = [b - a for a, b in zip(before, after, strict=True)]
    return Gain(
        before=mean(before),
        after=mean(after),
        gain=mean(gains),
        ci95=bootstrap_ci(gains, resamples, seed),
        n=len(before),
        not_of_this_world=unknown,
    )


def oracle_wins(
    rows: Iterable[tuple[str, str, str, str]],
    comparisons: Iterable[Comparison],
    oracle: Oracle,
    resamples: int,
    seed: int,
) -> OracleWins:
    """The win rate by the oracle, beside which a judge's stands: (prompt's id, prompt, base's answer,
    tuned's) in.

    `agreement` is the share of the prompts on which judge and oracle both prefer one side (orders averaged)
    and it is the same.
    """
    judged: dict[str, list[float]] = {}
    for comparison in comparisons:
        if comparison.winner is not None:
            judged.setdefault(comparison.prompt_id, []).append(POINTS[comparison.winner])
    points, agreed, both = [], 0, 0
    for prompt_id, prompt, base, tuned in rows:
        base_score, tuned_score = oracle(prompt, base), oracle(prompt, tuned)
        if base_score is None or tuned_score is None:
            continue
        by_oracle = 0.5 + 0.5 * ((tuned_score > base_score) - (tuned_score < base_score))
        by_judge = mean(judged.get(prompt_id, [0.5]))
        points.append(by_oracle)
        if by_judge != 0.5 and by_oracle != 0.5:
            both, agreed = both + 1, agreed + ((by_judge > 0.5) == (by_oracle > 0.5))
    if not points:
        return OracleWins(n=0)
    win, tie, loss = wins_ties_losses(points)
    return OracleWins(
        n=len(points),
        win=win,
        tie=tie,
        loss=loss,
        win_rate=mean(points),
        ci95=bootstrap_ci(points, resamples, seed),
        agreement=agreed / both if both else None,
        both=both,
    )


def kept_pairs(
    pairs: Iterable[tuple[str, PreferencePair, Response, Response]], possible: int, oracle: Oracle | None
) -> KeptPairs:
    """Share of the possible pairs that were kept and, against an oracle, the accuracy of their labels."""
    kept = right = scored = 0
    for prompt, _, chosen, rejected in pairs:
        kept += 1
        if oracle is None:
            continue
        chosen_score, rejected_score = oracle(prompt, chosen.text), oracle(prompt, rejected.text)
        if chosen_score is not None and rejected_score is not None and chosen_score != rejected_score:
            scored += 1
            right += chosen_score > rejected_score
    return KeptPairs(
        share=kept / possible if possible else None, label_accuracy=right / scored if scored else None
    )
