"""Whatever is drawn together can be met by one answer: shown by writing it."""

import random
from itertools import combinations

import pytest

from checks.witness import witness
from sao.checks import KINDS, TRAINED, UNSEEN, draw, score
from sao.checks.together import can_all_be_met
from sao.records import Constraint

PROMPTS = (
    "Can you suggest some simple recipes with potatoes and cheese that my children would enjoy for dinner?",
    "Why?",
    "什么是光合作用？",
    "Explain how a compiler turns source code into machine instructions, and which steps matter most.",
)


def _proved(constraints: list[Constraint]) -> None:
    answer = witness(constraints)
    assert score(answer, constraints) == 1, (constraints, answer)


@pytest.mark.parametrize("names", [TRAINED, UNSEEN, tuple(KINDS)], ids=["trained", "unseen", "all"])
def test_what_is_drawn_can_be_met_by_one_answer(names: tuple[str, ...]) -> None:
    for seed in range(3000):
        rng = random.Random(seed)
        _proved(list(draw(rng, rng.choice(PROMPTS), names)))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_all_kinds_that_may_stand_together_can_be_met_together(size: int) -> None:
    """Every pair of kinds several times, every triple once."""
    for chosen in combinations(KINDS.values(), size):
        for seed in range({1: 30, 2: 10, 3: 1}[size]):
            rng = random.Random(f"{seed} {[kind.name for kind in chosen]}")
            prompt = rng.choice(PROMPTS)
            drawn = [(kind, kind.draw(rng, prompt)) for kind in chosen]
            if can_all_be_met(drawn):
                _proved([Constraint(kind.name, values) for kind, values in drawn])
