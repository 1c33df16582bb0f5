"""GSM8K (Cobbe et al., arXiv 2110.14168): word problems whose answer is a number.

Rows are openai/grade-school-math's: question, and an answer that ends with "#### 18" (or is the number).
Zero-shot, by the chat template, with the sentence `INSTRUCTION` below the question. Strict: the number after
the last "####", of an equation the one behind its last "=". Flexible: the last number of the answer, whatever
stands around it. Numbers are compared as numbers: 1,000, $1000.00 and, with two dots
or more, 1.000.000 are read as they are meant, and £5, ~5 and 5% are 5.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

from sao.evaluation.known_items import Measure, Row, Scored, WrittenItem, rows_of
from sao.evaluation.questions import question_of

MEASURES = (
    Measure(name="strict", title="strict (####)"),
    Measure(name="flexible", title="flexible (last number)"),
)
INSTRUCTION = (
    "Solve this problem step by step. End with a line that holds #### and then the final answer as a number, "
    "and nothing else."
)
"""Without an example: a small model gives the example's number as its answer."""
_DOTTED = r"\d{1,3}(?:\.\d{3}){2,}(?!\.?\d)"
"""1.000.000: two dots or more cannot be decimal points."""
_WRITTEN = rf"(?:{_DOTTED}|(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)?)"
_NUMBER = rf"[-−]?(?:[$£€]\s*)?(?:{_WRITTEN}|\.\d+)"
_ANY = re.compile(rf"(?<![\w.)]){_NUMBER}|{_WRITTEN}")
_AFTER_MARK = re.compile(r"(?<!#)####(?!#)[\s*=:]*([^\n#]*)")
_FIRST = re.compile(rf"[\s*:~≈$£€%]*({_NUMBER})")


def read_gsm8k(path: str) -> list[WrittenItem]:
    """The problems of a file. Raises DataError, with file and line, for a row that is not as described."""
    items = []
    for number, row in enumerate(rows_of(path, ("question", "answer"))):
        text, right = row.text("question"), _right(row)
        question = question_of([f"{text.strip()}\n\n{INSTRUCTION}"], number, distinct=(right,))
        items.append(WrittenItem(question=question, score=_scorer(right)))
    return items


def strict_number(text: str) -> Decimal | None:
    """The number after the last "####" that has one, None where there is none. Of "= 9 + 9 = 18" it is 18."""
    parts = (line.rstrip("= \t*").rpartition("=")[2] for line in _AFTER_MARK.findall(text))
    found = [first[1] for part in parts if (first := _FIRST.match(part))]
    return as_number(found[-1]) if found else None


def last_number(text: str) -> Decimal | None:
    """The last number of a text, None where there is none."""
    found = _ANY.findall(text)
    return as_number(found[-1]) if found else None


def as_number(text: str) -> Decimal | None:
    """A number as it is written in prose: "1,000", "$1000.00", "1.000.000", "−3", "5%"; None for anything
    else."""
    plain = re.sub(r"[\s$£€~≈%,]", "", text).replace("−", "-")
    if re.fullmatch(rf"-?{_DOTTED}", plain):
        plain = plain.replace(".", "")
    try:
        value = Decimal(plain)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def _right(row: Row) -> Decimal:
    value = row.fields.get("answer")
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise row.error("no text under answer", "answer")
    right = strict_number(value) if "####" in value else as_number(value)
    if right is None:
        raise row.error("no number under answer: neither after #### nor alone", "answer")
    return right


def _scorer(right: Decimal) -> Callable[[str], Scored]:
    def score(answer: str) -> Scored:
        return {
            "strict": (float(strict_number(answer) == right), 1.0),
            "flexible": (float(last_number(answer) == right), 1.0),
        }

    return score
