"""Judging: which of two answers is better. Pairs of responses in, `Judgment` records out (Algorithm 1 of
arXiv 2510.06652: (y_w, y_l) ← M(ranking instruction with x, y_1, y_2)).

`logprob` (default) reads the probabilities of the verdict's first token in one forward pass; both orders show
the judge's position bias (RLAIF, arXiv 2309.00267). `text` samples a ranking line, after reasoning where the
recipe asks for it, and reads it strictly (the paper's way). An unparseable verdict is kept as such: it is
neither a tie nor a label. The other methods are controls.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations, islice
from typing import Any, Protocol, cast

from sao.config import JudgingConfig
from sao.engines import ChoiceRequest, Engine, Failure, Request, Sample, Sampling
from sao.errors import ConfigError, DataError
from sao.records import Drop, Judgment, Message, Response, Verdict, make_id, seed_of
from sao.stages.functions import load_function
from sao.stages.rows import index_of_answer, pair_number, verdict_row
from sao.templates import fill, load_template

Oracle = Callable[[str, str], float | None]
"""(prompt, answer) → score from 0 to 1, None for a prompt that it does not know."""
SCORED_TOGETHER = 256
"""Pairs whose answers a reward model scores in one call."""


@dataclass(frozen=True, slots=True)
class OrderedPair:
    """Two answers in the order in which the judge sees them."""

    id: str
    row: int
    prompt_id: str
    prompt: str
    first: Response
    second: Response


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
    both: dict[str, Any] = {"orders": "both", "comparisons_per_answer": None, "panel": [], "function": None}
    if config.method not in ("logprob", "text"):
        both |= {"method": "logprob", "engine": None, "reasoning": False}
    return config.model_copy(update=both)


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
) -> Iterator[OrderedPair]:
    """The pairs of different answers of each (prompt id, prompt text, answers), in one order or both; equal
    texts are judged once.

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
            swap = orders == 1 and int(make_id(key, a.id, b.id), 16) % 2 == 1
            for order in range(orders):
                first, second = (b, a) if (order == 1) != swap else (a, b)
                row = verdict_row(index, n, number, orders, order)
                pairs.append(
                    OrderedPair(make_id(key, first.id, second.id), row, prompt_id, prompt, first, second)
                )
        yield from sorted(pairs, key=lambda pair: pair.first.index)


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

    `engine` is needed by logprob and text, `scorer` by reward, `oracle` by oracle and checks. An engine
    without log-probabilities gives text verdicts instead.
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
        case "logprob" | "text":
            assert engine is not None
            if config.method == "logprob" and engine.has_logprobs:
                yield from _by_logprob(todo, engine, config, name)
            else:
                yield from _by_text(todo, engine, config, name)
        case "reward":
            assert scorer is not None
            yield from _by_reward(todo, scorer, name)
        case "function":
            yield from _by_function(todo, str(config.function), name)
        case "oracle":
            assert oracle is not None, "the oracle belongs to the toy world"
            yield from (_judgment(pair, name, _oracle_verdict(pair, oracle)) for pair in todo)
        case "checks":
            assert oracle is not None, "no prompt has constraints"
            yield from (_judgment(pair, name, _oracle_verdict(pair, oracle) or "tie") for pair in todo)
        case "random" | "longer" | "shorter" | "first":
            rule = CONTROLS[config.method]
            yield from (_judgment(pair, name, rule(pair)) for pair in todo)
        case _:
            raise DataError(
                f"judging.method {config.method} has no judge: its labels come with `sao import`. Give that "
                "command "
                "again; it goes on where it stopped",
                key="judging.method",
            )


def _by_logprob(
    pairs: Iterable[OrderedPair], engine: Engine, config: JudgingConfig, name: str
) -> Iterator[Judgment | Drop]:
    template = load_template(config.template, ("prompt", "first", "second"))
    waiting: dict[str, OrderedPair] = {}

    def requests() -> Iterator[ChoiceRequest]:
        for pair in pairs:
            waiting[pair.id] = pair
            yield ChoiceRequest(pair.id, _ask(template, pair), config.choices, config.prefill)

    for choices in engine.choice_logprobs(requests()):
        pair = waiting.pop(choices.id)
        if isinstance(choices, Failure):
            yield _failed(pair, choices)
            continue
        verdict, p_first, verdict_prob = read_logprobs(
            choices.logprobs[0], choices.logprobs[1], config.min_verdict_prob
        )
        yield _judgment(pair, name, verdict, p_first, verdict_prob)


def read_logprobs(
    first: float, second: float, min_verdict_prob: float
) -> tuple[Verdict | None, float | None, float | None]:
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
    return "tie" if first == second else "first" if first > second else "second", p_first, verdict_prob


def _by_text(
    pairs: Iterable[OrderedPair], engine: Engine, config: JudgingConfig, name: str
) -> Iterator[Judgment | Drop]:
    template = load_template(config.template, ("prompt", "first", "second"))
    first, second = config.choices
    # In place of log-probabilities, which always name one of the two, the engine restricts the text to the
    # two rankings where it can.
    one_of = (f"{first} > {second}", f"{second} > {first}") if config.method == "logprob" else ()
    sampling = Sampling(config.max_tokens, config.temperature, one_of=one_of)
    waiting: dict[str, OrderedPair] = {}

    def requests() -> Iterator[Request]:
        for pair in pairs:
            waiting[pair.id] = pair
            yield Request(
                _ask(template, pair), (Sample(pair.id, seed_of(pair.id)),), sampling, config.prefill
            )

    for completion in engine.generate(requests()):
        pair = waiting.pop(completion.id)
        if isinstance(completion, Failure):
            yield _failed(pair, completion)
            continue
        cut = completion.finish_reason == "length"
        verdict = None if cut else read_ranking(completion.text, config.choices, config.reasoning)
        yield _judgment(pair, name, verdict, text=completion.text)


def _failed(pair: OrderedPair, failure: Failure) -> Drop:
    return Drop(row=pair.row, stage="judgments", record_id=pair.id, reason=failure.reason)


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
                yield _judgment(pair, name, verdict, p_first)
            else:  # too long for the model
                yield _judgment(pair, name, None)


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
        yield _judgment(pair, name, verdict)


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
    return "tie" if first == second else "first" if first > second else "second"


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


def _ask(template: str, pair: OrderedPair) -> tuple[Message, ...]:
    text = fill(template, prompt=pair.prompt, first=pair.first.text, second=pair.second.text)
    return (Message("user", text),)


def _judgment(
    pair: OrderedPair, name: str, verdict: Verdict | None, p_first: float | None = None,
    verdict_prob: float | None = None,
    text: str | None = None,
) -> Judgment:  # fmt: skip
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


def _longer(pair: OrderedPair) -> Verdict:
    """The longer answer, in characters."""
    first, second = len(pair.first.text), len(pair.second.text)
    return "tie" if first == second else "first" if first > second else "second"


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
    return "tie" if first == second else "first" if first > second else "second"


CONTROLS: dict[str, Callable[[OrderedPair], Verdict]] = {
    "random": _random_verdict, "longer": _longer, "shorter": _shorter, "first": lambda pair: "first",
}  # fmt: skip
