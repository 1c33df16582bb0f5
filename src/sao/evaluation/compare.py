"""Trained model against base: comparisons and answers in, a summary with intervals out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sao.records import Comparison, Judgment, PreferencePair, Response
from sao.statistics import bootstrap_ci, effect, mean, prompt_points

Oracle = Callable[[str, str], float | None]


def comparison_of(judgment: Judgment, base_id: str) -> Comparison:
    """A judgment on a base and a tuned answer, said in those terms."""
    base_first = judgment.first_id == base_id
    p_tuned = judgment.p_first
    if p_tuned is not None and base_first:
        p_tuned = 1 - p_tuned
    winner: Any = judgment.verdict
    if judgment.verdict in ("first", "second"):
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


def win_summary(
    comparisons: Iterable[Comparison], identical: int, resamples: int, seed: int
) -> dict[str, Any]:
    """Wins, ties, losses and the win rate of the tuned model, orders averaged by prompt first; `identical`
    answers are ties.

    Unreadable verdicts are counted and left out, never taken for ties; `bounds` is the win rate if all had
    been lost, or won.
    """
    rows: list[tuple[str, str, float | None]] = [(f"identical {i}", "", 0.5) for i in range(identical)]
    decided = first = 0
    for c in comparisons:
        rows.append(
            (
                c.prompt_id,
                c.order,
                None if c.winner is None else {"tuned": 1.0, "tie": 0.5, "base": 0.0}[c.winner],
            )
        )
        if c.winner in ("tuned", "base"):
            decided += 1
            first += (c.winner == "tuned") == (c.order == "tuned_first")
    points = prompt_points(rows)
    if not points.ids:
        return {"n": 0, "unreadable": points.unreadable}
    found = effect(points.values, 0.5, (0.0, 1.0), resamples, seed)
    rates = points.values.tolist()
    return {
        "n": found.n,
        "win": sum(r > 0.5 for r in rates),
        "tie": sum(r == 0.5 for r in rates),
        "loss": sum(r < 0.5 for r in rates),
        "win_rate": found.mean,
        "ci95": list(found.interval),
        "p": found.p,
        "detectable": found.detectable if 0 < found.detectable < math.inf else None,
        "bounds": list(points.bounds),
        "first_slot_rate": first / decided if decided else None,
        "unreadable": points.unreadable,
    }


def oracle_summary(
    rows: Iterable[tuple[str, str, str]], oracle: Oracle, resamples: int, seed: int
) -> dict[str, Any]:
    """Mean oracle scores of base and tuned on (prompt, base answer, tuned answer), and their paired
    difference."""
    before, after, unknown = [], [], 0
    for prompt, base, tuned in rows:
        x, y = oracle(prompt, base), oracle(prompt, tuned)
        if x is None or y is None:
            unknown += 1
        else:
            before.append(x)
            after.append(y)
    if not before:
        return {"n": 0, "not_of_this_world": unknown}
    gains = [b - a for a, b in zip(before, after, strict=True)]
    low, high = bootstrap_ci(gains, resamples, seed)
    return {
        "before": mean(before),
        "after": mean(after),
        "gain": mean(gains),
        "ci95": [low, high],
        "n": len(before),
        "not_of_this_world": unknown,
    }


def oracle_verdict(
    rows: Iterable[tuple[str, str, str, str]],
    comparisons: Iterable[Comparison],
    oracle: Oracle,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """The win rate as the exact oracle sees it, beside which a judge's stands: (prompt's id, prompt, base's
    answer, tuned's) in.

    `agreement` is the share of the prompts on which judge and oracle both prefer one side (orders averaged)
    and it is the same.
    """
    judged: dict[str, list[float]] = {}
    for c in comparisons:
        if c.winner is not None:
            judged.setdefault(c.prompt_id, []).append({"tuned": 1.0, "tie": 0.5, "base": 0.0}[c.winner])
    points, same, both = [], 0, 0
    for id_, prompt, base, tuned in rows:
        x, y = oracle(prompt, base), oracle(prompt, tuned)
        if x is None or y is None:
            continue
        points.append(1.0 if y > x else 0.5 if y == x else 0.0)
        said = mean(judged.get(id_, [0.5]))
        if said != 0.5 and points[-1] != 0.5:
            both, same = both + 1, same + ((said > 0.5) == (points[-1] > 0.5))
    if not points:
        return {"n": 0}
    low, high = bootstrap_ci(points, resamples, seed)
    won = {
        name: sum(p == worth for p in points) for name, worth in (("win", 1.0), ("tie", 0.5), ("loss", 0.0))
    }
    agreement = same / both if both else None
    return {
        "n": len(points),
        **won,
        "win_rate": mean(points),
        "ci95": [low, high],
        "agreement": agreement,
        "both": both,
    }


def kept_summary(
    pairs: Iterable[tuple[str, PreferencePair, Response, Response]], possible: int, oracle: Oracle | None
) -> dict[str, Any]:
    """Share of the possible pairs that were kept and, against an oracle, how many of their labels are
    right."""
    n = right = known = 0
    for prompt, _, chosen, rejected in pairs:
        n += 1
        x, y = (oracle(prompt, chosen.text), oracle(prompt, rejected.text)) if oracle else (None, None)
        if x is not None and y is not None and x != y:
            known += 1
            right += x > y
    return {"share": n / possible if possible else None, "label_accuracy": right / known if known else None}


def lengths(rows: Iterable[tuple[str, str, str]]) -> Iterator[tuple[int, int]]:
    """Words in the base and tuned answers."""
    for _, base, tuned in rows:
        yield len(base.split()), len(tuned.split())
