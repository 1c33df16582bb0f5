"""Judges with known faults, for a scripted engine: what an audit must find is put in here."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

from sao.engines import Sampling
from sao.engines.scripted import read_answers
from sao.records import Message

Choose = Callable[[tuple[Message, ...], tuple[str, ...]], tuple[float, ...]]


def unit(*parts: object) -> float:
    """A number in (0, 1) that hangs on the parts alone."""
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=6).digest()
    return (int.from_bytes(digest, "big") + 0.5) / 2**48


def reply(messages: tuple[Message, ...], seed: int, sampling: Sampling) -> str:
    """Prompts, and answers whose length says nothing of their quality, the number in them."""
    last = messages[-1].content
    if "person" in last.lower():
        return f"Prompt: what is {unit(seed, 'prompt'):.6f}?"
    words = " ".join(f"word{k}" for k in range(int(40 * unit(seed, "length"))))
    return f"quality {unit(seed, 'quality'):.6f} {words}"


def quality(answer: str) -> float:
    """What an answer is worth, from 0 to 1."""
    return float(answer.split()[1])


def gold(prompt: str, answer: str) -> float:
    """The oracle of these tests."""
    return quality(answer)


def judge(p_first: Callable[[str, str], float]) -> Choose:
    """A judge that gives the first of two answers this probability."""

    def choose(messages: tuple[Message, ...], choices: tuple[str, ...]) -> tuple[float, ...]:
        answers = read_answers(messages)
        assert answers is not None
        p = min(max(p_first(*answers), 1e-12), 1 - 1e-12)
        return math.log(p), math.log1p(-p)

    return choose


def always_first(first: str, second: str) -> float:
    return 0.97


def always_longer(first: str, second: str) -> float:
    return 0.95 if len(first) > len(second) else 0.05 if len(first) < len(second) else 0.5


def noisy(
    accuracy: float, bias: float = 0.0, temperature: float = 1.0, shared: bool = True
) -> Callable[[str, str], float]:
    """A judge that names the better answer with this probability, adds `bias` nats for the first slot, and
    states its log-odds divided by `temperature`. With `shared` its errors are the same in both orders, else
    each order errs alone."""
    sure = math.log(accuracy / (1 - accuracy))

    def p_first(first: str, second: str) -> float:
        pair = (first, second) if not shared else tuple(sorted((first, second)))
        right = unit("err", *pair) < accuracy
        lean = sure if (quality(first) > quality(second)) == right else -sure
        return 1 / (1 + math.exp(-(lean / temperature + bias)))

    return p_first
