"""How a command ends: its exit status and what it says on stderr."""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sao.cli import build_parser, main
from sao.errors import ConfigError, Terminated, TrainingError


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (TrainingError("the loss is not finite"), 1, "sao: TrainingError: the loss is not finite"),
        (Terminated("training: SIGTERM"), 143, "sao: training: SIGTERM; the same command goes on from here"),
        (KeyboardInterrupt(), 130, "sao: stopped; what is finished is kept"),
        (OSError(28, "No space left on device", "runs/x"), 1, "sao: runs/x: No space left on device"),
    ],
)
def test_errors_have_a_status_and_a_line_each(
    error: BaseException,
    status: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*given: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr("sao.method.run", fail)
    assert main(["run", "default", "--engine.name", "scripted", "--out", str(tmp_path / "run")]) == status
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(message)


def test_only_the_first_of_several_processes_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["train", "deno"]) == 1
    assert capsys.readouterr().err == ""


def test_a_bug_is_no_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*given: Any, **options: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("sao.method.run", fail)
    with pytest.raises(ZeroDivisionError):
        main(["run", "default", "--engine.name", "scripted", "--out", str(tmp_path)])


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = [sys.executable, "-m", "sao", "run", "--help-config"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == 1


def commands() -> dict[str, argparse.ArgumentParser]:
    action = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def test_every_command_has_help_and_a_function() -> None:
    names = ["run", "prompts", "respond", "judge", "pairs", "train", "eval", "sweep", "export", "import"]
    names += ["status", "stats", "contamination", "audit", "label", "env", "plan", "preview"]
    assert list(commands()) == names
    for name, parser in commands().items():
        assert callable(parser.get_default("call")), name
        assert name == "label" or "--json" in parser.format_help()


@pytest.mark.parametrize("name", ["export", "status", "stats", "audit", "label"])
def test_commands_on_a_folder_take_no_recipe_keys(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, str(tmp_path), "--train.beta", "2"]) == 1
    assert f"{ConfigError.__name__}: unknown argument --train.beta=2" in capsys.readouterr().err


def test_two_models_need_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--base", "builtin:world"]) == 1
    assert "give both --base and --tuned" in capsys.readouterr().err
    both = ["eval", "--base", "builtin:world", "--tuned", "builtin:world", "--questions"]
    assert main([*both, "heldout"]) == 1
    assert "--questions heldout: write it as SUITE=VALUE" in capsys.readouterr().err


def test_at_most_two_runs_stand_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", "a", "b", "c"]) == 1
    assert "one run, or two side by side" in capsys.readouterr().err
