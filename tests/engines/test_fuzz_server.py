"""benchmarks/fuzz_server.py: broken answers of a server are noticed, and the script notices where not."""

import json

import pytest

from sao.engines import Choices, Completion, Failure
from support.repository import load_script

fuzz = load_script("benchmarks/fuzz_server.py")
GOOD = Completion("a", "yes, it is", None, "stop")


def test_broken_answers_are_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--seed", "7", "--n", "60"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["faults"] == 0
    assert sum(sum(found.values()) for found in line["changes"].values()) == 60
    assert sum(found.get("failure", 0) for found in line["changes"].values()) > 20


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (GOOD, "same"),
        (Completion("a", "no", None, "stop"), "FAULT"),
        (Completion("a", "yes", None, "length"), "same"),
        (Completion("a", "yes", None, "stop"), "FAULT"),
        (Failure("a", "no usable answer"), "failure"),
        (Failure("a", ""), "FAULT"),
        (None, "FAULT"),
    ],
)
def test_what_counts_as_a_fault(found: object, word: str) -> None:
    assert fuzz.outcome(found, GOOD)[0] == word


@pytest.mark.parametrize(
    ("logprobs", "word"),
    [
        ((-0.1, -2.0), "same"),
        ((-0.1, float("nan")), "same"),
        ((float("nan"),) * 2, "failure"),
        ((-0.3, -2.0), "FAULT"),
    ],
)
def test_verdicts_may_be_unread_but_not_others(logprobs: tuple[float, float], word: str) -> None:
    assert fuzz.outcome(Choices("a", logprobs), Choices("a", (-0.1, -2.0)))[0] == word
