"""Whatever is drawn together can be met by one answer: shown by writing it."""

import random
from itertools import combinations

import pytest

from checks.witness import witness
from sao.checks import KINDS, TRAINED, UNSEEN, draw, score
from sao.checks.together import FORMAT_GROUPS, can_all_be_met, may_contradict
from sao.records import Constraint

PROMPTS = (
    "Can you suggest some simple recipes with potatoes and cheese that my children would enjoy for dinner?",
    "Why?",
    "什么是光合作用？",
    "Explain how a compiler turns source code into machine instructions, and which steps matter most.",
)


@pytest.mark.parametrize("names", [TRAINED, UNSEEN, tuple(KINDS)], ids=["trained", "unseen", "all"])
def test_what_is_drawn_can_be_met_by_one_answer(names: tuple[str, ...]) -> None:
    for seed in range(3000):
        rng = random.Random(seed)
        drawn = list(draw(rng, rng.choice(PROMPTS), names))
        assert score(witness(drawn), drawn) == 1, drawn


@pytest.mark.parametrize("size", [1, 2, 3])
def test_all_kinds_that_may_stand_together_can_be_met_together(size: int) -> None:
    """Every pair of kinds several times, every triple once."""
    for chosen in combinations(KINDS.values(), size):
        for seed in range({1: 30, 2: 10, 3: 1}[size]):
            rng = random.Random(f"{seed} {[kind.name for kind in chosen]}")
            prompt = rng.choice(PROMPTS)
            drawn = [(kind, kind.draw(rng, prompt)) for kind in chosen]
            if can_all_be_met(drawn):
                asked = [Constraint(kind.name, values) for kind, values in drawn]
                assert score(witness(asked), asked) == 1, asked


@pytest.mark.parametrize("names", [TRAINED, UNSEEN, tuple(KINDS)], ids=["trained", "unseen", "all"])
@pytest.mark.parametrize(
    "prompt",
    [
        "Describe the sea. Use a sentence.",
        "Explain it in two SENTENCES or fewer.",
        "Which word means joy? In 50 words.",
        "Give me a bulleted list, a table or JSON of five lines.",
        "Write one paragraph.",
    ],
)
def test_a_prompt_that_names_a_format_gets_no_other(names: tuple[str, ...], prompt: str) -> None:
    for seed in range(200):
        drawn = draw(random.Random(seed), prompt, names)
        assert 1 <= len(drawn) <= 3
        assert not {KINDS[constraint.kind].group for constraint in drawn} & set(FORMAT_GROUPS)
        assert drawn == draw(random.Random(seed), prompt, names)
        assert score(witness(list(drawn)), drawn) == 1, drawn


def test_other_prompts_get_every_kind() -> None:
    for prompt in (*PROMPTS, "Is Swordfish online, and listed in the keyword index?"):
        assert not any(may_contradict(kind, prompt) for kind in KINDS.values())
