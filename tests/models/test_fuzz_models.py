"""benchmarks/fuzz_models.py: broken model folders are noticed."""

import json
import sys

import pytest

from support.repository import load_script

fuzz = load_script("benchmarks/fuzz_models.py")


@pytest.mark.slow
def test_broken_folders_are_noticed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["fuzz_models.py", "--n", "40", "--seed", "9"])
    fuzz.main()
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["faults"] == 0
    found = [count for counts in line["by_mutation"].values() for count in counts.items()]
    assert sum(number for _, number in found) == 40
    assert sum(number for word, number in found if word == "error") > 25
