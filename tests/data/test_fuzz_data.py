"""benchmarks/fuzz_data.py: broken files are noticed, and the script notices where they are not."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sao.errors import DataError
from support.repository import load_script

fuzz = load_script("benchmarks/fuzz_data.py")


def test_broken_files_are_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--seed", "5", "--n", "40"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["faults"] == 0
    assert sum(sum(found.values()) for found in line["changes"].values()) == 40
    assert sum(found.get("error", 0) for found in line["changes"].values()) > 15


def failing(error: Exception) -> Callable[..., Any]:
    def read(path: Path, rows: Any) -> Any:
        raise error

    return read


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (lambda path, rows: ["a", "b"], "same"),
        (lambda path, rows: ["a", None], "dropped"),
        (lambda path, rows: ["a"], "fault"),
        (lambda path, rows: ["a", "c"], "fault"),
        (lambda path, rows: ["a", "b", "b"], "fault"),
        (failing(DataError("p.jsonl, line 1: no", key="x")), "error"),
        (failing(DataError("somewhere: no", key="x")), "fault"),
        (failing(KeyError("p.jsonl")), "fault"),
    ],
)
def test_what_came_of_a_change(tmp_path: Path, read: Callable[..., Any], outcome: str) -> None:
    source = tmp_path / "p.jsonl"
    case = fuzz.Case(fuzz.Sort(lambda rng: [], read, ()), "lines", [], tmp_path, source, random.Random(0))
    assert fuzz.outcome(case, source, ["a", "b"])[0] == outcome


def test_faults_are_counted_and_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that skips what is broken, as many do."""
    read_pairs = fuzz.read_pairs

    def lenient(source: str) -> Any:
        try:
            yield from read_pairs(source)
        except DataError:
            return

    monkeypatch.setattr(fuzz, "read_pairs", lenient)
    assert fuzz.main(["--seed", "1", "--n", "60"]) == 1
    *shown, line = capsys.readouterr().out.splitlines()
    assert json.loads(line)["faults"] == sum(text.startswith("FAULT") for text in shown) > 5


def test_every_sort_is_read_in_every_layout(tmp_path: Path) -> None:
    for name, sort in fuzz.SORTS.items():
        rows = sort.rows(random.Random(name))
        for layout in fuzz.LAYOUTS:
            if sort.flat or "table" not in layout:
                folder = tmp_path / f"{name} {layout}"
                folder.mkdir()
                found = sort.read(fuzz.write(folder, layout, rows, sort.split), rows)
                assert len(found) == len(rows)
                assert None not in found
