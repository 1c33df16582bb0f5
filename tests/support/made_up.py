"""Records, recipes and engines that tests make up."""

from typing import Any

import numpy as np
import numpy.typing as npt

from sao.config import (
    Config,
    make_config,
)
from sao.data.contamination_sets import Benchmark
from sao.engines import Sampling
from sao.engines.scripted import ScriptedEngine
from sao.records import Judgment, Message, Persona, Response, make_id
from sao.results.rounds import Against, Answers, RoundJudge, RoundResult


def response(index: int, text: str, row: int = 0) -> Response:
    return Response(
        id=make_id("r", row, index, text),
        row=2 * row + index,
        prompt_id=f"prompt{row}",
        index=index,
        text=text,
        token_ids=None,
        finish_reason="stop",
    )


def answers(texts: list[str]) -> list[Response]:
    return [
        Response(
            id=make_id("r", i),
            row=i,
            prompt_id="prompt0",
            index=i,
            text=text,
            token_ids=None,
            finish_reason="stop",
        )
        for i, text in enumerate(texts)
    ]


def said(
    first: Response, second: Response, p: float | None, verdict: str | None = None, judge: str = "self"
) -> Judgment:
    word: Any = verdict if p is None else "first" if p > 0.5 else "second" if p < 0.5 else "tie"
    return Judgment(
        id=make_id(judge, first.id, second.id),
        row=0,
        prompt_id="prompt0",
        first_id=first.id,
        second_id=second.id,
        judge=judge,
        verdict=word,
        p_first=p,
    )


TEN = "one two three four five six seven eight nine ten"


def benchmark(*texts: str, name: str = "bench") -> Benchmark:
    return Benchmark(name=name, items=[(str(i), text) for i, text in enumerate(texts)])


A, B = response(0, "a"), response(1, "b")


def scripted_recipe(n: int, **sections: Any) -> Config:
    people = {"source": "none", "n": n, "held_out": 0}
    return make_config({"engine": {"name": "scripted"}, "personas": people, **sections})


def sigmoid(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-x)))


def self_made(**sections: Any) -> Config:
    personas = {"source": "self", "n": 300, "held_out": 40, **sections.pop("personas", {})}
    return make_config({"engine": {"name": "scripted"}, "personas": personas, **sections})


def writer(kinds: int) -> ScriptedEngine:
    """An engine that knows `kinds` different people, and asks as itself."""

    def reply(messages: tuple[Message, ...], seed: int, sampling: Sampling) -> str:
        last = messages[-1].content
        if last.startswith(("Invent", "Here is a person:")):
            number = seed % kinds
            words = " ".join(f"w{number}x{i}" for i in range(6))
            return f"Persona: somebody of kind {number} who knows {words}"
        if "uses an assistant" in last:
            return f"Prompt: what about {seed}?"
        return f"answer {seed}"

    return ScriptedEngine(reply=reply)


def people(n: int) -> list[Persona]:
    return [Persona(id=f"{i:016x}", row=i, text=f"a baker number {i}") for i in range(n)]


START = Answers(words=40.0, distinct_2=0.5, repetition=0.05, cut_off=0.02)
"""What the first model's held-out answers are like."""


def a_round(number: int = 1, win: float = 0.6, **changes: Any) -> RoundResult:
    """A round in which nothing is wrong, with some figures changed."""
    against = Against(n=500, win_rate=win, ci95=(win - 0.04, win + 0.04))
    figures: dict[str, Any] = {
        "round": number, "model": f"round-{number}", "prompts": 1000, "pairs": 500, "kept_share": 0.5,
        "identical": 0.1, "margin": 3.0, "chosen_logp": -1.0, "rejected_logp": -2.0, "gap": 1.0,
        "base": START, "answers": START, "initial": against, "previous": against, "checks": None,
        "oracle": None, "judge": RoundJudge(first_slot_rate=0.55, flip_rate=0.2, agreement=None),
    }  # fmt: skip
    return RoundResult(**figures | changes)
