"""The golden run (scripts/golden.py): the records of small scripted runs are what they were."""

import json
import runpy
from pathlib import Path

GOLDEN = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "golden.py"))


def test_the_records_are_what_they_were(tmp_path: Path) -> None:
    found = GOLDEN["scripted"](tmp_path)
    assert sum(map(len, found.values())) > 200
    assert GOLDEN["differences"](json.loads(GOLDEN["GOLDEN"].read_text()), found) == []


def test_a_difference_is_seen() -> None:
    old, new = {"a": {"x": "1", "y": "2"}}, {"a": {"x": "1"}, "b": {"z": "3"}}
    assert GOLDEN["differences"](old, new) == ["a: y", "b: z"]
