"""The golden run (scripts/golden.py): the records of small scripted runs are what they were."""

import json
from pathlib import Path

from support.repository import load_script

golden = load_script("scripts/golden.py")


def test_the_records_are_what_they_were(tmp_path: Path) -> None:
    found = golden.scripted(tmp_path)
    assert sum(map(len, found.values())) > 200
    assert golden.differences(json.loads(golden.GOLDEN.read_text()), found) == []


def test_a_difference_is_seen() -> None:
    old, new = {"a": {"x": "1", "y": "2"}}, {"a": {"x": "1"}, "b": {"z": "3"}}
    assert golden.differences(old, new) == ["a: y", "b: z"]
