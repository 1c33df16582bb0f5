"""Preference data sets in the forms that others write."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from sao.records import Message

Row = dict[str, Any]
SYSTEM, ASKED = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}
GOOD, BAD = {"role": "assistant", "content": "So."}, {"role": "assistant", "content": "No."}
WHY = (Message("user", "Why?"),)
HH = "\n\nHuman: Why?\n\nAssistant:"


def write(path: Path, rows: list[Any]) -> str:
    """The rows as .jsonl, .json (one array) or .parquet."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), "utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def sharegpt(message: dict[str, str]) -> dict[str, str]:
    names = {"user": "human", "assistant": "gpt"}
    return {"from": names.get(message["role"], message["role"]), "value": message["content"]}


def in_parts(message: dict[str, str]) -> Row:
    text = message["content"]
    return {
        "role": message["role"],
        "content": [{"type": "text", "text": text[:2]}, {"type": "text", "text": text[2:]}],
    }


FORMS: dict[str, Row] = {
    "messages": {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]},
    "implicit": {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
    "text": {"prompt": "Why?", "chosen": "So.", "rejected": "No."},
    "text and messages": {"prompt": "Why?", "chosen": [GOOD], "rejected": [BAD]},
    "HH": {"chosen": HH + " So.", "rejected": HH + " No."},
    "HH with a prompt": {"prompt": HH, "chosen": " So.", "rejected": " No."},
    "HH with a prompt repeated": {"prompt": HH, "chosen": HH + " So.", "rejected": HH + " No."},
    "UltraFeedback": {"prompt": "Why?", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
    "prompt repeated as messages": {"prompt": [ASKED], "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
    "ShareGPT": {"conversations": [sharegpt(ASKED)], "chosen": sharegpt(GOOD), "rejected": sharegpt(BAD)},
    "parts": {"prompt": [in_parts(ASKED)], "chosen": [in_parts(GOOD)], "rejected": [in_parts(BAD)]},
    "an empty system message": {
        "prompt": [{**SYSTEM, "content": " "}, ASKED],
        "chosen": [GOOD],
        "rejected": [BAD],
    },
}
