"""What our kinds and IFEval's read in the same way: brackets, titles, highlights, JSON, quotation marks. None
takes more than linear time, so they search by position instead of by patterns that try again."""

from __future__ import annotations

import json
import re
from typing import Any

SEPARATOR = "******"
"""What stands between two answers."""
_HIGHLIGHT = re.compile(r"\*[^\n*]*\*")
_DOUBLE_HIGHLIGHT = re.compile(r"\*\*[^\n*]*\*\*")


def bracketed(text: str) -> list[str]:
    """What stands in [ ] within one line, from each opening bracket to the next closing one."""
    found = []
    for line in text.split("\n"):
        begin = line.find("[")
        while begin >= 0 and (end := line.find("]", begin + 1)) >= 0:
            found.append(line[begin + 1 : end])
            begin = line.find("[", end + 1)
    return found


def has_title(text: str) -> bool:
    """Whether a line has something between << and >>."""
    for line in text.split("\n"):
        begin, end = line.find("<<"), line.rfind(">>")
        if 0 <= begin < end and line[begin : end + 2].lstrip("<").rstrip(">").strip():
            return True
    return False


def highlights(text: str) -> int:
    """Parts of a line in *one* or **two** asterisks that are not blank; one in two asterisks may count
    twice or not at all in the first count, as in IFEval."""
    single = sum(bool(part.strip("*").strip()) for part in _HIGHLIGHT.findall(text))
    return single + sum(bool(part[2:-2].strip()) for part in _DOUBLE_HIGHLIGHT.findall(text))


def two_answers(text: str) -> bool:
    """Whether exactly two different answers stand on both sides of six asterisks; a separator may also
    stand at the start and at the end."""
    parts = [part.strip() for part in text.split(SEPARATOR)]
    answers = [part for part in parts if part]
    return all(parts[1:-1]) and len(answers) == 2 and answers[0] != answers[1]


def is_quoted(text: str) -> bool:
    """Whether the text begins and ends with a straight double quotation mark."""
    inner = text.strip()
    return len(inner) > 1 and inner[0] == '"' and inner[-1] == '"'


def read_json(text: str) -> tuple[bool, Any]:
    """Whether the text is JSON, and what it says."""
    try:
        return True, json.loads(text)
    except (ValueError, RecursionError):
        return False, None


RELATIONS = ("at least", "less than")
"""How a number may be compared in IFEval."""


def is_count(found: int, relation: str, wanted: int) -> bool:
    """IFEval's two relations: "at least" and "less than"."""
    return found >= wanted if relation == "at least" else found < wanted
