"""A judge on pairs whose right verdict is known: an answer against itself, as it is, padded, cut in half and
shuffled.

Groups of a prompt and its answers in; the share of the judge's verdicts in favour of the answer as it was,
and the share of pairs whose verdict changes with the order, out. `sao audit RUN --self-tests N` and `sao eval
… --evaluation.self_tests N` show them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from heapq import nsmallest

from sao.config import JudgingConfig
from sao.engines import Engine
from sao.errors import ConfigError
from sao.records import Drop, Prompt, Response, Verdict, make_id
from sao.results.audit import SelfTest
from sao.results.base import Rate
from sao.stages import judging
from sao.statistics import ratio_ci

Group = tuple[Prompt, list[Response]]


def try_judge(
    groups: Iterable[Group], n: int, open_judge: Callable[[], Engine], config: JudgingConfig, seed: int = 0
) -> dict[str, SelfTest]:
    """The judge on pairs made of one answer each of `n` prompts, in both orders: for each change of `CHANGES`
    the share of its verdicts in favour of the answer as it was (against itself: of the first slot), as rate
    (None for no verdict), ci95 and n; and under `flips` likewise the share of pairs whose verdict changes
    with the order (from a tie to a win, too) among those that were read in both orders. An answer against
    itself has no `flips`: both orders are one.

    Raises ConfigError where the method of judging asks nobody.
    """
    if config.method not in ("logprob", "text"):
        raise ConfigError(
            f"self-tests ask a judge that reads; this run's is {config.method}", key="--self-tests"
        )
    config = config.model_copy(update={"orders": "both", "comparisons_per_answer": None})
    chosen = nsmallest(n, groups, key=lambda group: make_id("self-test", seed, group[0].id))
    judge = open_judge()
    return {name: _test(chosen, name, judge, config, seed) for name in CHANGES}


def _test(groups: list[Group], name: str, engine: Engine, config: JudgingConfig, seed: int) -> SelfTest:
    ordered_pairs = list(_made_up_pairs(groups, name, CHANGES[name], seed))
    points_by_prompt: dict[str, list[float]] = {}
    for verdict in judging.judge(ordered_pairs, engine, config, set()):
        if isinstance(verdict, Drop) or verdict.verdict is None:
            continue
        unchanged: Verdict = "first" if verdict.row == 0 or name == "identical" else "second"
        points = 0.5 if verdict.verdict == "tie" else float(verdict.verdict == unchanged)
        points_by_prompt.setdefault(verdict.prompt_id, []).append(points)
    rate = _rate([(sum(both), len(both)) for both in points_by_prompt.values()])
    if name == "identical":
        return SelfTest(**dict(rate))
    read_twice = [both for both in points_by_prompt.values() if len(both) == 2]
    return SelfTest(**dict(rate), flips=_rate([(both[0] != both[1], 1) for both in read_twice]))


def _rate(rows: list[tuple[float, int]]) -> Rate:
    """The rate of (so often, out of so many) a prompt, with its interval and count."""
    hits, of = [hit for hit, _ in rows], [n for _, n in rows]
    rate, interval = ratio_ci(hits, of)
    return Rate(rate=rate if rows else None, ci95=interval, n=sum(of))


def _made_up_pairs(
    groups: Iterable[tuple[Prompt, list[Response]]],
    name: str,
    change: Callable[[str, random.Random], str],
    seed: int,
) -> Iterator[judging.OrderedPair]:
    for prompt, answers in groups:
        if not answers:
            continue
        good = answers[0]
        text = change(good.text, random.Random(make_id(seed, name, good.id)))
        if text == good.text and name != "identical":
            continue  # too short to be cut or shuffled
        other = replace(good, id=make_id(good.id, name), text=text)
        for order, (x, y) in enumerate(((good, other), (other, good))):
            yield judging.OrderedPair(
                make_id("self-test", x.id, y.id, order), order, prompt.id, prompt.conversation, x, y
            )


def _padded(text: str, draw: random.Random) -> str:
    """The answer said twice: longer, and no better."""
    return f"{text} {text}"


def _halved(text: str, draw: random.Random) -> str:
    words = text.split()
    return " ".join(words[: len(words) // 2]) or text


def _shuffled(text: str, draw: random.Random) -> str:
    """Its sentences in another order, or its words where it is one sentence."""
    sentences = re.split(r"(?<=[.!?])\s+", text.strip())
    parts = sentences if len(sentences) > 1 else text.split()
    mixed = list(parts)
    for _ in range(5):
        if mixed != parts:
            break
        draw.shuffle(mixed)
    return " ".join(mixed)


CHANGES: dict[str, Callable[[str, random.Random], str]] = {
    "identical": lambda text, draw: text, "padded": _padded, "truncated": _halved, "shuffled": _shuffled,
}  # fmt: skip
