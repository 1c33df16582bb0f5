"""How many are asked, and how long they may be, so that a preview keeps to its time."""

from __future__ import annotations

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
CHECKED_PROMPTS = (6, 50)
"""Prompts with constraints: at least, and at most."""
PAIRS = (6, 58)
"""Pairs that are judged: at least, and at most."""
SHARES = {"prompts": 0.2, "answers": 0.2, "checked answers": 0.3}
"""Share of the time for each step; what is left is for the verdicts."""
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
    """Tokens of an answer at most. Twice as many texts as prompts take about half as long again."""
    return min(recipe, within(ANSWER_TOKENS, budget.seconds("answers") / (1.5 * max(each, 1e-6))))


def checked_tokens(recipe: int) -> int:
    """Tokens of an answer to a prompt with constraints, at most."""
    return min(recipe, CHECKED_TOKENS)


def checked_prompts(budget: Budget, tokens_per_second: float, tokens: float) -> int:
    """Prompts with constraints, by the tokens of an answer that are expected."""
    affordable = budget.seconds("checked answers") * tokens_per_second / max(1.0, tokens)
    return within(CHECKED_PROMPTS, affordable / ANSWERS_EACH)


def judged_pairs(left: float, ways: int, each: float) -> int:
    """Pairs that are judged in both orders by every way."""
    return within(PAIRS, 0.9 * left / (2 * max(1, ways) * max(each, 1e-6)))
