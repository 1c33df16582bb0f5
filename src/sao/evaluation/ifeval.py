"""IFEval (Zhou et al., arXiv 2311.07911): prompts with instructions that a program can check.

Rows are google-research's: key, prompt, instruction_id_list, kwargs. Four figures, as there: an instruction
is kept (instruction level), or all of a prompt are (prompt level); strictly, or in one of the answer's
loosened variants (without its first line, its last line, its asterisks). An empty answer keeps nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from sao.errors import ConfigError
from sao.evaluation.known_items import Measure, Row, Scored, WrittenItem, rows_of
from sao.evaluation.questions import question_of

MEASURES = (
    Measure(name="prompt_strict", title="prompts, strict"),
    Measure(name="instruction_strict", title="instructions, strict"),
    Measure(name="prompt_loose", title="prompts, loose"),
    Measure(name="instruction_loose", title="instructions, loose"),
)
CHECKS = "sao.checks.ifeval"
"""The module that checks the instructions."""


class Checks(Protocol):
    """What that module offers."""

    def passes(self, instruction_id: str, kwargs: Mapping[str, Any], answer: str, prompt: str) -> bool:
        """Whether an answer keeps an instruction."""
        ...

    def loosened(self, answer: str) -> Sequence[str]:
        """The answer's variants."""
        ...


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction of a prompt: the source's id, and what is asked for."""

    id: str
    values: Mapping[str, Any]


def load_checks() -> Checks:
    """The checkers. Raises ConfigError where this version has none."""
    try:
        return cast(Checks, importlib.import_module(CHECKS))
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"suite ifeval needs {CHECKS}, which this installation of SAO does not have ({error}). Install a "
            "newer version",
            key="ifeval",
        ) from error


def read_ifeval(path: str) -> list[WrittenItem]:
    """The prompts of a file. Raises DataError, with file and line, for a row that is not as described or an
    instruction that cannot be checked."""
    checks = load_checks()
    items = []
    for number, row in enumerate(rows_of(path, ("key", "prompt", "instruction_id_list", "kwargs"))):
        prompt = row.text("prompt")
        instructions = _instructions(row)
        for instruction in instructions:
            _try(checks, instruction, prompt, row)
        ids = (part for i in instructions for part in (i.id, sorted(i.values.items())))
        question = question_of([prompt], number, key=str(row.fields.get("key", "")), distinct=ids)
        items.append(WrittenItem(question=question, score=_scorer(checks, prompt, instructions)))
    return items


def _instructions(row: Row) -> list[Instruction]:
    """The instructions of a row; values that are null (as in the hub's copy) are left out."""
    ids, values = row.texts("instruction_id_list"), row.fields.get("kwargs")
    if not isinstance(values, list) or len(values) != len(ids):
        raise row.error(f"not one object under kwargs for each of the {len(ids)} instructions", "kwargs")
    if not all(isinstance(value, dict) for value in values):
        raise row.error("kwargs holds something else than objects", "kwargs")
    return [
        Instruction(id_, {name: _whole(v) for name, v in value.items() if v is not None})
        for id_, value in zip(ids, values, strict=True)
    ]


def _whole(value: object) -> object:
    """3 for 3.0, as tables with gaps hold it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _try(checks: Checks, instruction: Instruction, prompt: str, row: Row) -> None:
    """Check some text, so that an instruction that cannot be checked shows before a model is asked."""
    try:
        checks.passes(instruction.id, instruction.values, "One sentence.", prompt)
    except Exception as error:  # the checker may raise anything over values that it cannot use
        why = f"{type(error).__name__}: {error}"
        raise row.error(f"instruction {instruction.id} cannot be checked ({why})", "kwargs") from error


def _scorer(checks: Checks, prompt: str, instructions: list[Instruction]) -> Callable[[str], Scored]:
    def score(answer: str) -> Scored:
        strict = [_keeps(checks, i, prompt, [answer]) for i in instructions]
        variants = [answer, *checks.loosened(answer)]
        loose = [_keeps(checks, i, prompt, variants) for i in instructions]
        n = float(len(instructions))
        return {
            "prompt_strict": (float(all(strict)), 1.0),
            "instruction_strict": (float(sum(strict)), n),
            "prompt_loose": (float(all(loose)), 1.0),
            "instruction_loose": (float(sum(loose)), n),
        }

    return score


def _keeps(checks: Checks, instruction: Instruction, prompt: str, variants: Sequence[str]) -> bool:
    return any(
        checks.passes(instruction.id, instruction.values, text, prompt) for text in variants if text.strip()
    )
