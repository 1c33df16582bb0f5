"""The exact oracle of the toy world: what an answer is worth, from 0 to 1.

    score = correctness · (0.4 · completeness + 0.3 · form + 0.3 · brevity)

- correctness: the share of what the answer asserts that is right (a repeated item is wrong); for `order`, the
  share of places that hold the right number. Nothing asserted is worth 0, so an empty or constant answer
  earns (almost) nothing.
- completeness: right items over items asked for, at most 1.
- form: 1 if the answer has the form that was asked for (and not more items than asked for), else 0.
- brevity: 1 for no words beyond those needed, falling to 0 at five words too many: length never pays.

Enters: the text of a prompt and of an answer. Leaves: a `Score`.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from sao.toy_world.language import (
    MATERIALS,
    PRODUCTS,
    SENTENCE,
    TOOL_OWNER,
    VERBS,
    Task,
    render,
)

EXCESS_WORDS = 5
"""Words beyond the needed ones at which brevity reaches 0."""
_ITEMS = frozenset([*TOOL_OWNER, *MATERIALS, *PRODUCTS])


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The four marks of an answer, each from 0 to 1."""

    correctness: float
    completeness: float
    form: float
    brevity: float

    @property
    def total(self) -> float:
        """The oracle's score, from 0 to 1."""
        return self.correctness * (0.4 * self.completeness + 0.3 * self.form + 0.3 * self.brevity)


def score(prompt: str, answer: str) -> float | None:
    """The oracle's score of `answer`, or None where `prompt` is no question of this world."""
    task = Task.parse(prompt)
    return None if task is None else marks(task, answer).total


def marks(task: Task, answer: str) -> Score:
    """The four marks of an answer to `task`."""
    answer = " ".join(answer.split())
    said = _asserted(task, answer)
    wanted = Counter(task.wanted)  # a price may stand twice
    right = list((Counter(said) & wanted).elements())
    if task.kind == "order":
        places = sum(a == b for a, b in zip(said, task.wanted, strict=False))
        correctness = places / max(len(said), len(task.wanted))
    else:
        correctness = min(len(right), task.need) / len(said) if said else 0.0
    needed = len(re.findall(r"\w+", render(task, list(task.wanted[: task.need]), task.form)))
    excess = max(0, len(re.findall(r"\w+", answer)) - needed)
    return Score(
        correctness=correctness,
        completeness=min(1.0, len(right) / task.need),
        form=float(len(said) <= task.need and _has_form(task, answer, said)),
        brevity=max(0.0, 1 - excess / EXCESS_WORDS),
    )


def _asserted(task: Task, answer: str) -> list[str]:
    """What the answer claims, in order: numbers, items or deeds; the tool an explanation is about is no
    claim."""
    words = re.findall(r"[a-z]+|\d+", answer)
    if task.kind == "order":
        return re.findall(r"\d+", re.sub(r"\bno \d+ (?=\d)", "", answer))
    if task.kind == "explain":
        return [w for w in words if w in VERBS or (w in _ITEMS and w != task.tool)]
    return [w for w in words if w in _ITEMS]


def _has_form(task: Task, answer: str, said: list[str]) -> bool:
    """Whether what was said stands in the answer in the form that the task asks for."""
    if not said:
        return False
    if task.kind in ("list", "order") or task.form == SENTENCE:
        if task.kind == "explain" and len(said) != 2:
            return False
        return render(task, said, task.form) in answer
    if task.kind == "explain":
        return len(said) == 2 and render(task, said, task.form) in answer and f"the {task.who}" not in answer
    return f"{said[0]}." in answer and f"the {task.who}" not in answer
