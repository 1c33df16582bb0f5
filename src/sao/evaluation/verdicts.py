"""What a judge wrote, read by the rule of each protocol: text or log-probabilities in, a verdict or None out.

A verdict is never guessed. It is read only in the exact form that the protocol's template asks for, so
nothing is read that the protocol's own code would not read. Where a text holds several different verdicts,
none is read: which one was meant (an option that was quoted, a first thought, the last word) cannot be told,
and each rule for choosing favours something. Arena-Hard does the same. MT-Bench's code takes [[A]] before
[[B]] wherever they stand, and the first of several marks; AlpacaEval's takes the rank of the first model
without a look at the other's. The same verdict said twice is one. What is None counts as unparseable.

    python -c "from sao.evaluation.verdicts import parse_arena; print(parse_arena('So: [[B>>A]]'))"
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final

from sao.records import Verdict

ARENA_VERDICTS: Final = ("A>>B", "A>B", "A=B", "B>A", "B>>A")
_ARENA = re.compile(r"\[\[([AB<>=]+)\]\]")
_PAIRWISE = re.compile(r"\[\[([ABC])\]\]")
_RATING = re.compile(r"\[\[([0-9]+(?:\.[0-9]*)?)\]\]")
_FENCE = re.compile(r"```(?:json|python)?\s*\n(.*?)\n?```", re.DOTALL)
LOWEST_MARK, HIGHEST_MARK = 1.0, 10.0


def parse_arena(text: str) -> str | None:
    """One of Arena-Hard's five verdicts, A>>B, A>B, A=B, B>A or B>>A, from double brackets.

    As gen_judgment.py of arena-hard-auto v0.1: all bracketed verdicts must be the same; [[A<B]] is none of
    the five.
    """
    found = set(_ARENA.findall(text))
    return found.pop() if len(found) == 1 and found <= set(ARENA_VERDICTS) else None


def parse_pairwise(text: str) -> Verdict | None:
    """MT-Bench's pairwise verdict: [[A]] first, [[B]] second, [[C]] tie.

    FastChat's llm_judge/common.py looks for [[A]], then [[B]], then [[C]], and so favours A where a judge
    quotes its options.
    """
    found = set(_PAIRWISE.findall(text))
    if len(found) != 1:
        return None
    named: dict[str, Verdict] = {"A": "first", "B": "second", "C": "tie"}
    return named[found.pop()]


def parse_rating(text: str) -> float | None:
    """MT-Bench's mark from 1 to 10 in double brackets, fractions allowed.

    FastChat's code takes the first match, and where there is none a number in single brackets, which may as
    well be a footnote.
    """
    found = {float(mark) for mark in _RATING.findall(text)}
    if len(found) != 1:
        return None
    mark = found.pop()
    return mark if LOWEST_MARK <= mark <= HIGHEST_MARK else None


def parse_model_token(text: str, first: str = "m", second: str = "M") -> Verdict | None:
    """AlpacaEval's one-token verdict, the name of the better model and nothing else; case tells the two
    apart."""
    said = text.strip()
    return "first" if said == first else "second" if said == second else None


def first_preference(logprobs: Mapping[str, float], first: str = "m", second: str = "M") -> float | None:
    """AlpacaEval 2's weighted verdict: the probability that the first is better, P(m) / (P(m) + P(M)).

    Args:
        logprobs: Log-probabilities (natural) of the likeliest tokens at the verdict's place.
        first: The token that stands for the first answer.
        second: And for the second.

    Returns:
        None where neither is among the likeliest. Where one is missing it counts as 0, as in alpaca_eval's
        logprob_parser: it is less likely than all that are given. In annotations.json this is preference = 2
            − p with the baseline first.

    """
    a, b = logprobs.get(first, -math.inf), logprobs.get(second, -math.inf)
    if math.isnan(a) or math.isnan(b) or max(a, b) == -math.inf:
        return None
    if a >= b:
        return 1 / (1 + math.exp(b - a))
    return math.exp(a - b) / (1 + math.exp(a - b))


def parse_ranking(text: str, first: str = "m", second: str = "M") -> Verdict | None:
    """AlpacaEval's ranking of both models, as JSON or Python: [{"model": "m", "rank": 1}, {"model": "M",
    "rank": 2}].

    The list may lie under "ordered_models" (the form of its function call), or in a code fence. Both ranks
    must be there, 1 and 2; alpaca_eval's ranking_parser looks at the first model's alone.
    """
    fenced = _FENCE.search(text)
    rows = _literal(fenced[1] if fenced else text)
    if isinstance(rows, dict):
        rows = rows.get("ordered_models")
    if not isinstance(rows, list) or len(rows) != 2 or not all(isinstance(row, dict) for row in rows):
        return None
    ranks = [(row.get("model"), row.get("rank")) for row in rows]
    if any(type(name) is not str or type(rank) not in (int, float) for name, rank in ranks):
        return None
    if set(ranks) == {(first, 1), (second, 2)}:
        return "first"
    return "second" if set(ranks) == {(first, 2), (second, 1)} else None


def _literal(text: str) -> Any:
    """The value that stands in a text as JSON or as a Python literal; None where there is none."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    return None
