"""What lies in a run folder: files by path, and the rows in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FINAL = ("records.jsonl", "drops.jsonl", "stage.json")


def files(root: Path, names: tuple[str, ...] = FINAL) -> dict[str, bytes]:
    """The files of these names below a folder, by path; by default the final files of a run's stages."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.name in names}


def json_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def records_of(root: Path, stage: str) -> list[dict[str, Any]]:
    """What the only stage of this name in the first round of a run has sealed."""
    (file,) = root.glob(f"round-1/{stage}-*/records.jsonl")
    return json_rows(file)


def drops_of(root: Path, stage: str) -> list[dict[str, Any]]:
    """What it has dropped."""
    (file,) = root.glob(f"round-1/{stage}-*/drops.jsonl")
    return json_rows(file)
