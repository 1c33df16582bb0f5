"""Pairs: which judgments are learnt from. Judgments in, `PreferencePair` records or Drops out
(arXiv 2510.06652: D ← D ∪ {(x, y_w, y_l)}).

`confident` keeps two answers whose winner is the same in every order judged and whose mean log-odds reach `min_margin`: label
noise costs more than lost pairs (arXiv 2404.09824). `all` keeps every readable verdict, as the paper does; where both orders were
judged, the mean log-odds decide.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import combinations

from sao.config import PairsConfig
from sao.types import Drop, Judgment, PreferencePair, Prompt, Response, make_id


def build_pairs(
    groups: Iterable[tuple[Prompt, list[Response], list[Judgment]]],
    config: PairsConfig,
    key: str,
    n: int,
    orders: int = 1,
) -> Iterator[PreferencePair | Drop]:
    """One pair or Drop for every two answers to a prompt; `groups` holds each prompt with its answers and judgments, of which
    there are `orders` for every two where none was lost."""
    for prompt, responses, judgments in groups:
        by_pair: dict[frozenset[str], list[Judgment]] = {}
        for judgment in judgments:
            by_pair.setdefault(frozenset((judgment.first_id, judgment.second_id)), []).append(judgment)
        by_index = {response.index: response for response in responses}
        for place, (i, j) in enumerate(combinations(range(n), 2)):
            row = prompt.row * (n * (n - 1) // 2) + place
            pair_id = make_id(key, prompt.id, i, j)
            if i not in by_index or j not in by_index:
                yield Drop(row=row, stage="pairs", record_id=pair_id, reason="an answer was dropped")
            elif by_index[i].text == by_index[j].text:
                yield Drop(row=row, stage="pairs", record_id=pair_id, reason="identical answers")
            else:
                a, b = by_index[i], by_index[j]
                judged = by_pair.get(frozenset((a.id, b.id)), [])
                if config.keep == "confident" and 0 < len(judged) < orders:
                    yield Drop(row=row, stage="pairs", record_id=pair_id, reason="a verdict was dropped")
                else:
                    yield decide(a, b, judged, config, pair_id, row)


def decide(
    a: Response, b: Response, judgments: list[Judgment], config: PairsConfig, pair_id: str, row: int
) -> PreferencePair | Drop:
    """The pair that the judgments on two answers make, or why they make none."""

    def drop(reason: str) -> Drop:
        return Drop(row=row, stage="pairs", record_id=pair_id, reason=reason)

    readable = [j for j in judgments if j.verdict is not None]
    if not readable or (config.keep == "confident" and len(readable) < len(judgments)):
        return drop("unreadable verdict" if judgments else "not judged")
    winners = {j.winner_id for j in readable}
    # In favour of a: nats where the judge gives probabilities, else a vote for each order.
    odds = [_log_odds(j, a.id) for j in readable]
    votes = [0 if j.winner_id is None else 1 if j.winner_id == a.id else -1 for j in readable]
    known = [o for o in odds if o is not None]
    margin = sum(known) / len(known) if known else None
    lean = margin if margin is not None else float(sum(votes))
    if config.keep == "confident":
        if len(winners) > 1:
            return drop("orders disagree")
        if margin is not None and abs(margin) < config.min_margin:
            return drop("margin too small")
    if lean == 0 or winners == {None}:
        return drop("tie")
    chosen, rejected = (a, b) if lean > 0 else (b, a)
    size = None if margin is None else abs(margin)
    return PreferencePair(
        id=pair_id,
        row=row,
        prompt_id=a.prompt_id,
        chosen_id=chosen.id,
        rejected_id=rejected.id,
        p_chosen=None if size is None else 1 / (1 + math.exp(-size)),
        margin=size,
    )


def _log_odds(judgment: Judgment, response_id: str) -> float | None:
    """Log-odds (nats, at most ±30) that this response is the better one."""
    if judgment.p_first is None:
        return None
    p = min(max(judgment.p_first, 1e-13), 1 - 1e-13)
    odds = math.log(p) - math.log1p(-p)
    return odds if judgment.first_id == response_id else -odds
