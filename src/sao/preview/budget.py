"""How many are asked, and how long they may be, so that a preview keeps to its time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from sao.engines import Completion, Engine, Request, Sample, Sampling
from sao.records import Message, make_id, seed_of

PEOPLE, FEWEST, MOST = 8, 4, 16
"""Personas, where the time suffices as it mostly does; at least; and at most."""
TRIED, TRIED_TOKENS = 8, 12
"""Texts that are written at once, and their tokens, to see how fast the model is."""
PROMPT_TOKENS, ANSWER_TOKENS, CHECKED_TOKENS = (48, 512), (96, 1024), 192
"""Tokens of a prompt and of an answer, at least and at most; of an answer to a prompt with constraints, at
most."""
ANSWERS_EACH, EXPECTED_TOKENS = 4, 90
"""Answers to a prompt with constraints, and mean tokens of one (assumed; SmolLM2 needs about 70)."""
CHECKED_PROMPTS = (6, 32)
"""Prompts with constraints that are answered first: at least, and at most. How many of them give a pair says
how many more are needed."""
TOGETHER = 0.6
"""n times as many texts at once take n^TOGETHER times as long (assumed; on two cores SmolLM2's linear layers
take 59 ms for 16 texts and 111 ms for 64, and the rest grows with the texts)."""
GOLD = 50
"""Pairs of which the better answer is known that are wanted."""
MORE_PROMPTS = 150
"""Prompts with constraints that are answered for them at most in each further turn."""
ALL_WAYS = (8, 12, 20)
"""Pairs that every way to judge sees: at least, where the time is short; where it suffices; and at most,
unless there is time for all. More of them FINALISTS see first."""
FINALISTS = 2
"""Ways that see more pairs before the others do: the recipe's and the best other."""
SHARES = {"prompts": 0.2, "answers": 0.15, "checked answers": 0.15}
"""Share of the time for each step; what is left is for more prompts with constraints and for the verdicts."""
SURE = 0.9
"""Share of the time left that is planned."""
QUESTION = "How do I repair a bicycle tyre at home? Explain it to me."


@dataclass(frozen=True)
class Budget:
    """The time that a preview has, from its first moment."""

    minutes: float
    began: float = field(default_factory=time.monotonic)

    def seconds(self, step: str) -> float:
        """Seconds for a step."""
        return 60 * self.minutes * SHARES[step]

    def left(self) -> float:
        """Seconds that are left."""
        return max(0.0, self.began + 60 * self.minutes - time.monotonic())


def seconds_of_a_token(engine: Engine) -> float:
    """Seconds in which each of TRIED texts grows by one token; measured. The first text warms the engine
    up."""
    sampling = Sampling(TRIED_TOKENS, temperature=1.0)

    def request(number: int) -> Request:
        id_ = make_id("speed", number)
        return Request((Message("user", QUESTION),), (Sample(id_, seed_of(id_)),), sampling)

    list(engine.generate([request(-1)]))
    began = time.monotonic()
    done = [c for c in engine.generate([request(i) for i in range(TRIED)]) if isinstance(c, Completion)]
    longest = max((len(c.token_ids or c.text.split()) for c in done), default=1)
    return (time.monotonic() - began) / max(1, longest)


def seconds_each(records: Iterable[object]) -> float:
    """Seconds in which one of these comes; measured while they are made."""
    began = time.monotonic()
    n = sum(1 for _ in records)
    return (time.monotonic() - began) / max(1, n)


def within(bounds: tuple[int, int], wanted: float) -> int:
    """A whole number between two bounds."""
    return int(min(max(wanted, bounds[0]), bounds[1]))


def prompt_tokens(budget: Budget, each: float, ways: int, recipe: int) -> int:
    """Tokens of a prompt at most; `each`: seconds of one token of all texts that are written at once."""
    affordable = budget.seconds("prompts") / (ways * max(each, 1e-6))
    return min(recipe, within(PROMPT_TOKENS, affordable))


def people(budget: Budget, each: float, tokens: int, ways: int) -> int:
    """Personas that are asked: PEOPLE, fewer where even these take too long, more where time is left."""
    affordable = budget.seconds("prompts") / (ways * max(each, 1e-6) * tokens)
    if affordable >= 2:
        return MOST
    return within((FEWEST, PEOPLE), PEOPLE * affordable)


def answer_tokens(budget: Budget, each: float, recipe: int) -> int:
    """Tokens of an answer at most, where twice as many are written at once as when `each` was measured."""
    return min(recipe, within(ANSWER_TOKENS, budget.seconds("answers") / (2**TOGETHER * max(each, 1e-6))))


def checked_tokens(recipe: int) -> int:
    """Tokens of an answer to a prompt with constraints, at most."""
    return min(recipe, CHECKED_TOKENS)


def checked_prompts(budget: Budget, tokens_per_second: float, tokens: float, together: int) -> int:
    """Prompts with constraints that are answered first, by the tokens of an answer that are expected and the
    speed at which so many texts were written `together`: n times as many take n^TOGETHER times as long."""
    one_batch = together * max(1.0, tokens) / tokens_per_second
    times = (budget.seconds("checked answers") / one_batch) ** (1 / TOGETHER)
    return within(CHECKED_PROMPTS, times * together / ANSWERS_EACH)


@dataclass(frozen=True)
class Pace:
    """The time, the number of ways to judge, and the seconds of one verdict."""

    budget: Budget
    ways: int
    each: float

    def affordable(self) -> float:
        """Seconds that are planned of those that are left."""
        return SURE * self.budget.left()

    def seconds(self, pairs: int, first: int) -> float:
        """Seconds of the verdicts on pairs in both orders: `first` of them by all ways, the rest by
        FINALISTS."""
        return 2 * self.each * (self.ways * min(first, pairs) + FINALISTS * max(0, pairs - first))


@dataclass(frozen=True, kw_only=True)
class Found:
    """Pairs whose better answer is known, of so many prompts; `apart`: those that share no answer; `judged`:
    those with verdicts, which need no more time."""

    prompts: int
    apart: int
    pairs: int
    judged: int = 0


def more_prompts(pace: Pace, plain: int, found: Found, took: float) -> int:
    """How many more prompts with constraints are answered, so that as many pairs as the time allows, GOLD at
    most, share no answer; where pairs are judged already, so that there are GOLD of both kinds. Time is kept
    for the verdicts on all pairs, GOLD at most, and on `plain` others. The pairs that were `found` took
    `took` seconds; fewer prompts than they took are answered in n^TOGETHER of that time, n being their
    share."""
    each, known = found.pairs / found.apart, pace.seconds(found.judged, ALL_WAYS[1])
    most = found.apart + math.ceil((GOLD - found.pairs) / each) if found.judged else GOLD
    for n in range(most, found.apart, -1):
        prompts = min(MORE_PROMPTS, math.ceil((n - found.apart) * found.prompts / found.apart))
        share = prompts / found.prompts
        answers = took * (share if share > 1 else share**TOGETHER)
        verdicts = pace.seconds(min(GOLD, round(n * each)) + plain, ALL_WAYS[1]) - known
        if answers + verdicts <= pace.affordable():
            return prompts
    return 0


def judged_by_all(pace: Pace, pairs: int) -> int:
    """How many of these pairs every way judges: as many as leave time for FINALISTS to judge them all."""
    least, enough, most = ALL_WAYS
    sizes: list[int] = [pairs, *range(min(pairs, most), enough, -1)]
    for n in sizes:
        if pace.seconds(pairs, n) <= pace.affordable():
            return n
    one = max(pace.seconds(1, 1), 1e-6)
    return min(pairs, within((least, enough), pace.affordable() / one))


def judged_by_best(pace: Pace, pairs: int, first: int) -> int:
    """How many of these pairs the ways of `pace` judge, the `first` among them."""
    one = max(pace.seconds(1, 1), 1e-6)
    return min(pairs, first + int(pace.affordable() / one))
