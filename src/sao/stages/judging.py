"""Judging: which of two answers is better. Pairs of responses in, `Judgment` records out (Algorithm 1 of
arXiv 2510.06652: (y_w, y_l) ← M(ranking instruction with x, y_1, y_2)).

`logprob` (default) reads the probabilities of the verdict's first token in one forward pass; both orders show
the judge's position bias (RLAIF, arXiv 2309.00267). `text` samples a ranking line, after reasoning where the
recipe asks for it, and reads it strictly (the paper's way). `pointwise` scores each answer alone.
`sao.stages.by_model` asks a model, `sao.stages.verdicts` reads what it says. An unparseable verdict is kept
as such: it is neither a tie nor a label. The other methods are controls.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol

from sao.config import JudgingConfig
from sao.config.judging import READERS
from sao.engines import Engine
from sao.errors import ConfigError, DataError
from sao.records import Drop, Judgment, Verdict
from sao.stages.answer_pairs import (
    ORDERS,
    OrderedPair,
    compared_pairs,
    ordered_pairs,
    orders_of,
    shown_pairs,
)
from sao.stages.by_model import by_logprob, by_pointwise, by_text, require_logprobs
from sao.stages.functions import load_function
from sao.stages.verdicts import judgment_of, read_logprobs, read_preference, read_ranking, verdict_by

__all__ = [
    "ORDERS",
    "OrderedPair",
    "compared_pairs",
    "is_flipped",
    "judge",
    "ordered_pairs",
    "orders_of",
    "read_logprobs",
    "read_preference",
    "read_ranking",
    "reading_judge",
    "shown_pairs",
]

Oracle = Callable[[str, str], float | None]
"""(prompt, answer) → score from 0 to 1, None for a prompt that it does not know."""
SCORED_TOGETHER = 256
"""Pairs whose answers a reward model scores in one call."""


class Scorer(Protocol):
    """A reward model: scores for (prompt, answer), any unit in which a difference is the log-odds of being
    better."""

    name: str

    def score(self, texts: Sequence[tuple[str, str]]) -> list[float]:
        """One number each; NaN where the text does not fit into the model."""
        ...


def reading_judge(config: JudgingConfig) -> JudgingConfig:
    """How an evaluation is judged: by the recipe's judge in both orders; where that judge reads no answers
    (controls, a reward model, given labels), by the model itself and its log-probabilities."""
    both: dict[str, Any] = {
        "orders": "both", "comparisons_per_answer": None, "panel": [], "function": None, "flipped": 0.0
    }  # fmt: skip
    if config.method not in READERS:
        both |= {"method": "logprob", "engine": None, "reasoning": False}
    return config.model_copy(update=both)


def judge(
    pairs: Iterable[OrderedPair],
    engine: Engine | None,
    config: JudgingConfig,
    done: Container[str],
    oracle: Oracle | None = None,
    scorer: Scorer | None = None,
    name: str = "self",
) -> Iterator[Judgment | Drop]:
    """A judgment by `name`, or a Drop where the engine failed, for each pair that is not `done`, in order of
    finishing.

    `engine` is needed by logprob, text and pointwise, `scorer` by reward, `oracle` by oracle and checks. For
    logprob an engine without log-probabilities gives text verdicts instead. Raises ConfigError where that is
    not possible (pointwise, wordings, content_free).
    """
    todo = (pair for pair in pairs if pair.id not in done)
    for judgment in _judged(todo, engine, config, oracle, scorer, name):
        if isinstance(judgment, Judgment) and is_flipped(judgment, config.flipped):
            yield _turned_around(judgment)
        else:
            yield judgment


def is_flipped(judgment: Judgment, share: float) -> bool:
    """Whether a verdict is among the `share` that is turned around: the same for both orders of a pair, and a
    larger share adds to the smaller one."""
    low, high = sorted((judgment.first_id, judgment.second_id))
    return share > 0 and random.Random(f"flipped {low}:{high}").random() < share


def _turned_around(judgment: Judgment) -> Judgment:
    opposite: dict[Verdict | None, Verdict | None] = {"first": "second", "second": "first"}
    verdict = opposite.get(judgment.verdict, judgment.verdict)
    p_first = None if judgment.p_first is None else 1 - judgment.p_first
    return replace(judgment, verdict=verdict, p_first=p_first)


def _judged(
    todo: Iterator[OrderedPair],
    engine: Engine | None,
    config: JudgingConfig,
    oracle: Oracle | None,
    scorer: Scorer | None,
    name: str,
) -> Iterator[Judgment | Drop]:
    """The verdicts as the method gives them."""
    match config.method:
        case "logprob" | "text" | "pointwise":
            assert engine is not None
            require_logprobs(engine, config)
            if config.method == "pointwise":
                yield from by_pointwise(todo, engine, config, name)
            elif config.method == "logprob" and engine.has_logprobs:
                yield from by_logprob(todo, engine, config, name)
            else:
                yield from by_text(todo, engine, config, name)
        case "reward":
            assert scorer is not None
            yield from _by_reward(todo, scorer, name)
        case "function":
            yield from _by_function(todo, str(config.function), name)
        case "oracle":
            assert oracle is not None, "the oracle belongs to the toy world"
            yield from (judgment_of(pair, name, _oracle_verdict(pair, oracle)) for pair in todo)
        case "checks":
            assert oracle is not None, "no prompt has constraints"
            yield from (judgment_of(pair, name, _oracle_verdict(pair, oracle) or "tie") for pair in todo)
        case "random" | "longer" | "shorter" | "first":
            rule = CONTROLS[config.method]
            yield from (judgment_of(pair, name, rule(pair)) for pair in todo)
        case _:
            raise DataError(
                f"judging.method {config.method} has no judge: its labels come with `sao import`. Give that "
                "command "
                "again; it goes on where it stopped",
                key="judging.method",
            )


def _by_reward(pairs: Iterable[OrderedPair], scorer: Scorer, name: str) -> Iterator[Judgment]:
    """Scores are differences of log-odds (Bradley–Terry), so P(first) = σ(score of first − score of
    second)."""
    waiting = iter(pairs)
    while batch := list(islice(waiting, SCORED_TOGETHER)):
        texts = list(dict.fromkeys((p.prompt, r.text) for p in batch for r in (p.first, p.second)))
        scores = dict(zip(texts, scorer.score(texts), strict=True))
        for pair in batch:
            margin = scores[pair.prompt, pair.first.text] - scores[pair.prompt, pair.second.text]
            if math.isfinite(margin):
                verdict, p_first, _ = read_logprobs(min(0.0, margin), min(0.0, -margin), 0.0)
                yield judgment_of(pair, name, verdict, p_first)
            else:  # too long for the model
                yield judgment_of(pair, name, None)


def _by_function(pairs: Iterable[OrderedPair], path: str, name: str) -> Iterator[Judgment]:
    """Verdicts of the user's function. Raises ConfigError where it raises anything, or returns what is
    neither two scores nor a verdict."""
    function = load_function(path, "judging.function")
    for pair in pairs:
        try:
            said = function(pair.prompt, [pair.first.text, pair.second.text])
            verdict = read_preference(said)
        except Exception as error:
            raise ConfigError(
                f"judging.function {path!r}: {type(error).__name__}: {error}; on prompt {pair.prompt_id}: "
                f"{pair.prompt[:200]!r}. Mend the function, then give the same command again",
                key="judging.function",
            ) from error
        yield judgment_of(pair, name, verdict)


def _longer(pair: OrderedPair) -> Verdict:
    """The longer answer, in characters."""
    first, second = len(pair.first.text), len(pair.second.text)
    return verdict_by(first, second)


def _shorter(pair: OrderedPair) -> Verdict:
    opposite: dict[Verdict, Verdict] = {"first": "second", "second": "first", "tie": "tie"}
    return opposite[_longer(pair)]


def _random_verdict(pair: OrderedPair) -> Verdict:
    """A fair coin for the two answers, the same in both orders."""
    low, high = sorted((pair.first.id, pair.second.id))
    winner = random.Random(f"{low}:{high}").choice((low, high))
    return "first" if winner == pair.first.id else "second"


def _oracle_verdict(pair: OrderedPair, oracle: Oracle) -> Verdict | None:
    first, second = oracle(pair.prompt, pair.first.text), oracle(pair.prompt, pair.second.text)
    if first is None or second is None:
        return None
    return verdict_by(first, second)


CONTROLS: dict[str, Callable[[OrderedPair], Verdict]] = {
    "random": _random_verdict, "longer": _longer, "shorter": _shorter, "first": lambda pair: "first",
}  # fmt: skip
