"""IFEval (Zhou et al., arXiv 2311.07911): prompts with instructions that a program can check.

Rows are google-research's: key, prompt, instruction_id_list, kwargs. Four figures, as there: an instruction
is kept (instruction level), or all of a prompt are (prompt level); strictly, or in one of the answer's
loosened variants (without its first line, its last line, its asterisks). An empty answer keeps nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sao.checks import ifeval as checks
from sao.errors import StoreError
from sao.evaluation.known_items import Measure, Row, Scored, WrittenItem, rows_of
from sao.evaluation.questions import question_of

MEASURES = (
    Measure(name="prompt_strict", title="prompts, strict"),
    Measure(name="instruction_strict", title="instructions, strict"),
    Measure(name="prompt_loose", title="prompts, loose"),
    Measure(name="instruction_loose", title="instructions, loose"),
)


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction of a prompt: the source's id, and what is asked for."""

    id: str
    values: Mapping[str, Any]


def read_ifeval(path: str) -> list[WrittenItem]:
    """The prompts of a file. Raises DataError, with file and line, for a row that is not as described or an
    instruction that cannot be checked."""
    items = []
    for number, row in enumerate(rows_of(path, ("key", "prompt", "instruction_id_list", "kwargs"))):
        prompt = row.text("prompt")
        instructions = _instructions(row)
        for instruction in instructions:
            _try(instruction, prompt, row)
        ids = (part for i in instructions for part in (i.id, sorted(i.values.items())))
        question = question_of([prompt], number, key=str(row.fields.get("key", "")), distinct=ids)
        items.append(WrittenItem(question=question, score=_scorer(prompt, instructions)))
    return items


def _instructions(row: Row) -> list[Instruction]:
    """The instructions of a row; values that are null (as in the hub's copy) are left out."""
    ids, values = row.texts("instruction_id_list"), row.fields.get("kwargs")
    if not isinstance(values, list) or len(values) != len(ids):
        raise row.error(f"not one object under kwargs for each of the {len(ids)} instructions", "kwargs")
    if not all(isinstance(value, dict) for value in values):
        raise row.error("kwargs holds something else than objects", "kwargs")
    return [
        Instruction(id_, {name: checks.whole(part) for name, part in value.items() if part is not None})
        for id_, value in zip(ids, values, strict=True)
    ]


def _try(instruction: Instruction, prompt: str, row: Row) -> None:
    """Check some text, so that an instruction that cannot be checked shows before a model is asked."""
    try:
        checks.passes(instruction.id, instruction.values, "One sentence.", prompt)
    except StoreError as error:
        raise row.error(f"instruction {instruction.id} cannot be checked ({error})", "kwargs") from error


def _scorer(prompt: str, instructions: list[Instruction]) -> Callable[[str], Scored]:
    def score(answer: str) -> Scored:
        strict = [_keeps(i, prompt, [answer]) for i in instructions]
        loose = [_keeps(i, prompt, checks.loosened(answer)) for i in instructions]
        n = float(len(instructions))
        return {
            "prompt_strict": (float(all(strict)), 1.0),
            "instruction_strict": (float(sum(strict)), n),
            "prompt_loose": (float(all(loose)), 1.0),
            "instruction_loose": (float(sum(loose)), n),
        }

    return score


def _keeps(instruction: Instruction, prompt: str, variants: Sequence[str]) -> bool:
    return any(checks.passes(instruction.id, instruction.values, text, prompt) for text in variants)
