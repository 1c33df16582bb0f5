"""A judge on pairs whose right verdict is known: an answer against itself, as it is, padded, cut in half and shuffled.

Groups of a prompt and its answers in, the share of the judge's verdicts in favour of the answer as it was out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from heapq import nsmallest
from typing import Any

from sao import judging
from sao.config import JudgingConfig
from sao.engines import Engine
from sao.errors import ConfigError
from sao.evaluation.statistics import ratio_ci
from sao.types import Drop, Prompt, Response, Verdict, make_id

Group = tuple[Prompt, list[Response]]


def try_judge(
    groups: Iterable[Group], n: int, open_judge: Callable[[], Engine], config: JudgingConfig, seed: int = 0
) -> dict[str, Any]:
    """The judge on pairs made of one answer each of `n` prompts, in both orders: for each change of `CHANGES` the share of its
    verdicts in favour of the answer as it was (against itself: of the first slot), with interval and count.

    Raises ConfigError where the method of judging asks nobody.
    """
    if config.method not in ("logprob", "text"):
        raise ConfigError(f"self-tests ask a judge that reads; this run's is {config.method}")
    config = config.model_copy(update={"orders": "both", "opponents": None})
    chosen = nsmallest(n, groups, key=lambda group: make_id("self-test", seed, group[0].id))
    judge = open_judge()
    return {name: _test(chosen, name, judge, config, seed) for name in CHANGES}


def _test(groups: list[Group], name: str, engine: Engine, config: JudgingConfig, seed: int) -> dict[str, Any]:
    duels = list(_test_duels(groups, name, CHANGES[name], seed))
    counts: dict[str, list[float]] = {}
    for verdict in judging.judge(duels, engine, config, set()):
        if isinstance(verdict, Drop) or verdict.verdict is None:
            continue
        good: Verdict = "first" if verdict.row == 0 or name == "identical" else "second"
        worth = 0.5 if verdict.verdict == "tie" else float(verdict.verdict == good)
        row = counts.setdefault(verdict.prompt_id, [0.0, 0.0])
        row[0], row[1] = row[0] + worth, row[1] + 1
    hits, of = ([row[i] for row in counts.values()] for i in (0, 1))
    rate, interval = ratio_ci(hits, of)
    return {"rate": rate if counts else None, "ci95": list(interval), "n": int(sum(of))}


def _test_duels(
    groups: Iterable[tuple[Prompt, list[Response]]], name: str, change: Callable[[str, random.Random], str], seed: int
) -> Iterator[judging.Duel]:
    for prompt, answers in groups:
        if not answers:
            continue
        good = answers[0]
        text = change(good.text, random.Random(make_id(seed, name, good.id)))
        if text == good.text and name != "identical":
            continue  # too short to be cut or shuffled
        other = replace(good, id=make_id(good.id, name), text=text)
        for order, (x, y) in enumerate(((good, other), (other, good))):
            yield judging.Duel(make_id("self-test", x.id, y.id, order), order, prompt.id, prompt.conversation, x, y)


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
