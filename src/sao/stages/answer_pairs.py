"""Which answers to a prompt are compared, and in which order a judge sees them. Answers in, `OrderedPair`s
out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

from sao.config import JudgingConfig
from sao.records import Response, make_id
from sao.stages.rows import index_of_answer, pair_number, verdict_row


@dataclass(frozen=True, slots=True)
class OrderedPair:
    """Two answers in the order in which the judge sees them."""

    id: str
    row: int
    prompt_id: str
    prompt: str
    first: Response
    second: Response


def compared_pairs(n: int, comparisons_per_answer: int | None) -> set[tuple[int, int]]:
    """Which of n answers are compared, by number: all pairs, or a ring in which each answer meets so many
    comparisons_per_answer.

    Each answer is in the same number of pairs (where n and `comparisons_per_answer` are both odd, some are in
    one more), and the ring is connected, so that all can be ranked.
    """
    all_pairs = set(combinations(range(n), 2))
    if comparisons_per_answer is None or comparisons_per_answer >= n - 1:
        return all_pairs
    ring: set[tuple[int, int]] = set()
    for distance in range(1, comparisons_per_answer // 2 + 1):
        ring |= {(min(i, j), max(i, j)) for i in range(n) if (j := (i + distance) % n) != i}
    if comparisons_per_answer % 2:  # the answers half a ring apart, once each
        ring |= {(i, j) for i in range(n // 2 + n % 2) if (j := i + n // 2) < n}
    return ring


def orders_of(config: JudgingConfig) -> int:
    """In how many orders each pair is shown."""
    return ORDERS[config.orders]


ORDERS = {"one": 1, "both": 2}
"""In how many orders a pair is shown, by judging.orders."""


def shown_pairs(answers: Sequence[Response], comparisons_per_answer: int | None) -> int:
    """How many pairs of these answers a judge is shown: identical ones never pair."""
    return _shown_pairs(len({answer.text for answer in answers}), comparisons_per_answer)


@lru_cache
def _shown_pairs(different: int, comparisons_per_answer: int | None) -> int:
    return len(compared_pairs(different, comparisons_per_answer))


def ordered_pairs(
    groups: Iterable[tuple[str, str, list[Response]]],
    orders: int,
    key: str,
    n: int,
    comparisons_per_answer: int | None = None,
    order_key: str | None = None,
) -> Iterator[OrderedPair]:
    """The pairs of different answers of each (prompt id, prompt text, answers), in one order or both; equal
    texts are judged once. Where one order is shown `order_key` draws it (None: `key`).

    Pairs with the same prompt and the same first answer follow each other: an engine that caches prefixes
    (vLLM) then reads them once.
    """
    for prompt_id, prompt, responses in groups:
        pairs: list[OrderedPair] = []
        # Identical answers never pair; the pairs stage counts them.
        first_of_text = {r.text: r for r in reversed(responses)}
        distinct = [r for r in responses if first_of_text[r.text] is r]
        for i, j in sorted(compared_pairs(len(distinct), comparisons_per_answer)):
            a, b = distinct[i], distinct[j]
            index, number = index_of_answer(a.row, n), pair_number(a.index, b.index, n)
            # In one order only, the pair's own id draws which answer is first, so that a position bias
            # averages out.
            swap = orders == 1 and int(make_id(order_key or key, a.id, b.id), 16) % 2 == 1
            for order in range(orders):
                first, second = (b, a) if (order == 1) != swap else (a, b)
                row = verdict_row(index, n, number, orders, order)
                pairs.append(
                    OrderedPair(make_id(key, first.id, second.id), row, prompt_id, prompt, first, second)
                )
        yield from sorted(pairs, key=lambda pair: pair.first.index)
