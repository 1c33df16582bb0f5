"""Progress on stderr."""

import re

import pytest

from sao.cli.progress import Progress


def test_a_bar_for_each_stage_and_lines_between(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(shown=True)
    progress("prompts", 2, 4)
    progress("prompts", 4, 4)
    progress("responses", 0, 8)
    progress.say("loading a model")
    progress("responses", 8, 8)
    progress.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    bars = re.findall(r"^(\w+) +: +\d+%\|.*\| (\d+/\d+) ", captured.err.replace("\r", "\n"), re.MULTILINE)
    assert (bars[0], bars[-1]) == (("prompts", "2/4"), ("responses", "8/8"))
    assert ("prompts", "4/4") in bars
    assert re.search(r"^\d\d:\d\d:\d\d loading a model$", captured.err, re.MULTILINE)


def test_a_line_within_a_stage_leaves_its_bar(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(shown=True)
    progress("train", 0, 4)
    progress("train", 2, 4)
    progress.say("alarm at step 2")
    progress("train", 4, 4)
    progress.say("loading a model")
    progress.close()
    err = capsys.readouterr().err.replace("\r", "\n")
    assert len(re.findall(r"\| \d/4 \[00:00<\?", err)) == 1  # one bar began
    assert re.search(r"^\d\d:\d\d:\d\d alarm at step 2$", err, re.MULTILINE)
    assert err.index("alarm at step 2") < err.index("| 4/4 ") < err.index("loading a model")


def test_a_stage_of_the_same_name_has_a_bar_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(shown=True)
    for total in (4, 8, 8):
        progress("answers", 0, total)
        progress("answers", total, total)
    progress.close()
    err = capsys.readouterr().err.replace("\r", "\n")
    assert re.findall(r"\| (\d/\d) \[00:00<\?", err) == ["0/4", "0/8", "0/8"]
    assert re.findall(r"100%.*\| (\d/\d) ", err) == ["4/4", "8/8", "8/8"]


def test_no_progress_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(shown=False)
    progress("prompts", 2, 4)
    progress.say("a line")
    progress.close()
    assert capsys.readouterr().err == ""
