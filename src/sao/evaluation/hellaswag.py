"""HellaSwag (Zellers et al., arXiv 1905.07830): which of four endings goes on from a text.

Rows are rowanz/hellaswag's (activity_label, ctx or ctx_a and ctx_b, endings, label), cleaned as lm-eval
does, or rows that are cleaned already (context, endings, label). Zero-shot, without a chat template. acc: the
ending with the highest log-probability is the right one; acc_norm: the same, divided by the ending's
characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from sao.evaluation.known_items import ChosenItem, Measure, Row, Scored, rows_of
from sao.evaluation.questions import question_of

MEASURES = (
    Measure(name="acc_norm", title="acc_norm"),
    Measure(name="acc", title="acc"),
)
COLUMNS = ("context", "ctx", "ctx_a", "ctx_b", "activity_label", "endings", "label", "ind")


def read_hellaswag(path: str) -> list[ChosenItem]:
    """The items of a file. Raises DataError, with file and line, for a row that is not as described."""
    items = []
    for number, row in enumerate(rows_of(path, COLUMNS)):
        cleaned = row.optional_text("context") is not None
        context = row.text("context") if cleaned else _context(row)
        endings = row.texts("endings")
        endings = endings if cleaned else [clean(ending) for ending in endings]
        if len(endings) < 2 or not all(endings):
            raise row.error("fewer than two endings, or one that is empty", "endings")
        label = _label(row, len(endings))
        key = str(row.fields.get("ind", ""))
        question = question_of([context], number, key=key, distinct=endings)
        continuations = tuple(f" {ending}" for ending in endings)
        score = _scorer(label, [len(ending) for ending in endings])
        items.append(ChosenItem(question=question, continuations=continuations, score=score))
    return items


def clean(text: str) -> str:
    """A text of the source without WikiHow's marks, as in lm-eval's task."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _context(row: Row) -> str:
    """The text of a row of the source: the activity, then what happens."""
    first, second = row.optional_text("ctx_a"), row.fields.get("ctx_b")
    if first is not None and isinstance(second, str):
        happens = f"{first} {second.capitalize()}"
    else:
        happens = row.text("ctx")
    activity = row.optional_text("activity_label")
    return clean(f"{activity}: {happens}" if activity else happens)


def _label(row: Row, n: int) -> int:
    """The number of the right ending, which some copies write as a text."""
    value = row.fields.get("label")
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,9}\s*", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < n:
        raise row.error(f"no number from 0 to {n - 1} under label (the test split has none)", "label")
    return value


def _scorer(label: int, lengths: Sequence[int]) -> Callable[[Sequence[float]], Scored]:
    def score(logprobs: Sequence[float]) -> Scored:
        by_length = [logprob / length for logprob, length in zip(logprobs, lengths, strict=True)]
        return {
            "acc_norm": (float(_best(by_length) == label), 1.0),
            "acc": (float(_best(logprobs) == label), 1.0),
        }

    return score


def _best(values: Sequence[float]) -> int:
    """The place of the largest, the first of several."""
    return max(range(len(values)), key=lambda i: values[i])
