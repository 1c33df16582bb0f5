"""The command line: arguments, output, errors."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sao.cli import join_overrides, main, read_overrides
from sao.cli.app import build_parser
from sao.cli.arguments import RANGES
from sao.errors import ConfigError
from support.errors import raises
from support.misbehaving_server import Server

SMALL = ["--engine.name", "scripted", "--personas.n", "40", "--personas.held_out", "5"]


def test_a_stage_command_prints_its_funnel_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The default templates: the scripted engine answers those.
    command = [
        "pairs",
        "default",
        *SMALL,
        "--personas.source",
        "builtin:world",
        "--out",
        str(tmp_path),
        "--json",
    ]
    assert main(command) == 0
    out = capsys.readouterr().out.splitlines()
    summary = json.loads(out[-1])
    assert {row["stage"] for row in summary["funnel"]} == {
        "prompts",
        "filtered",
        "responses",
        "judgments",
        "pairs",
    }
    assert summary["judge"]["first_slot_rate"] is not None
    assert any(line.startswith("judge ") for line in out)
    assert main(command) == 0
    assert "Nothing to do: this run is finished." in capsys.readouterr().out


def test_export_writes_disjoint_sets_that_trl_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow.parquet

    many = ["--engine.name", "scripted", "--personas.n", "400", "--personas.held_out", "5"]
    assert (
        main(["pairs", "default", *many, "--personas.source", "builtin:world", "--out", str(tmp_path / "r")])
        == 0
    )
    assert main(["export", str(tmp_path / "r"), "--test-share", "0.2", "--json"]) == 0
    done = json.loads(capsys.readouterr().out.splitlines()[-1])
    train, test = (pyarrow.parquet.read_table(p).to_pylist() for p in done["paths"])
    assert (len(train), len(test)) == (done["train"], done["test"])
    assert len(test) > 0
    assert not {r["persona_id"] for r in train} & {r["persona_id"] for r in test}
    row = train[0]
    assert [m["role"] for m in row["prompt"] + row["chosen"] + row["rejected"]] == [
        "user",
        "assistant",
        "assistant",
    ]
    assert row["chosen"] != row["rejected"]
    first = Path(done["paths"][0]).read_bytes()
    assert main(["export", str(tmp_path / "r"), "--test-share", "0.2"]) == 0
    assert Path(done["paths"][0]).read_bytes() == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "deno"], "Did you mean demo"),
        (["run", "/nowhere/model"], "no model at"),
        (["run", "demo", "--train.bata", "1"], "Did you mean train.beta"),
        (["run", "demo", "--train.beta"], "--train.beta: no value given"),
        (["run", "demo", "stray"], "unexpected argument 'stray'"),
        (["export", "/nowhere"], "no run folder"),
    ],
)
def test_errors_go_to_stderr_with_the_next_step(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


def commands() -> dict[str, argparse.ArgumentParser]:
    (group,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(group.choices)


def test_every_whole_number_has_a_range() -> None:
    """An option of a new command that is a whole number belongs into RANGES."""
    options = {o.dest for command in commands().values() for o in command._actions if o.type is int}
    assert options == set(RANGES)


@pytest.mark.parametrize(
    "words",
    [
        ["stats", "RUN", "--seed", "-1"], ["audit", "RUN", "--self-tests", "-4"],
        ["label", "RUN", "--n", "-1"], ["label", "RUN", "--n", "0"],
        ["import", "FILE", "--out", "RUN", "--held-out", "-1"],
        ["plan", "demo", "--gpus", "0"], ["plan", "demo", "--prompt-tokens", "0"],
        ["run", "demo", "--seed", "-1"],
        ["eval", "--base", "a", "--tuned", "b", "--limit", "0"],
    ],
)  # fmt: skip
def test_a_number_out_of_its_range(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 1
    assert f"ConfigError: {words[-2]} {words[-1]}: it must be " in capsys.readouterr().err


def test_a_key_before_the_target_is_not_taken_for_it() -> None:
    assert join_overrides(["run", "--personas.n", "500", "demo"]) == ["run", "--personas.n=500", "demo"]
    assert join_overrides(["run", "--json", "--seed", "3", "--model", "x"]) == [
        "run",
        "--json",
        "--seed",
        "3",
        "--model=x",
    ]


def test_top_keys_are_those_of_the_recipe() -> None:
    from sao.cli import TOP_KEYS
    from sao.config import Config, field_names

    assert {name for name in field_names(Config) if "." not in name} == {*TOP_KEYS, "seed"}


def test_overrides() -> None:
    assert read_overrides(["--train.beta", "2", "--seed=3"]) == {"train.beta": "2", "seed": "3"}
    assert read_overrides(["--train.gamma=-1"]) == {"train.gamma": "-1"}
    with raises(ConfigError, key="train.beta"):
        read_overrides(["train.beta", "2"])


def test_help_of_the_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help-config"]) == 0
    out = capsys.readouterr().out
    assert "--train.lr (default: 1e-06)" in out
    assert "Peak learning rate" in out


def test_env(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["packages"]["torch"]
    assert found["threads"] >= 1


def test_version() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "sao", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("sao 0.")


@pytest.mark.parametrize(
    "given", [["--against", "gsm8k"], ["--against=gsm8k"], ["--sets", "a", "--against", "b"]]
)
def test_an_options_old_name_says_the_new_one(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["contamination", "runs/none", *given]) == 1
    assert "ConfigError: --against is called --sets now" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["some-model"],
        ["qwen2.5:7b"],
        ["--model", "some-model"],
        ["--model", "smollm2"],  # the name of a recipe too
        ["org/some-model"],
    ],
)
def test_a_model_on_a_server_may_have_any_name(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = words[-1]
    with Server(model=name, models=[name, "another"]) as server:
        small = ["--personas.n", "12", "--personas.held_out", "2", "--personas.source", "builtin:world"]
        served = ["--engine.name", "openai", "--engine.openai.base_url", server.url]
        assert main(["pairs", *words, *served, *small, "--out", str(tmp_path / "run"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["funnel"][-1]["stage"] == "pairs"
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["config"]["model"] == name


@pytest.mark.parametrize("target", ["defaults", "dem", "smollm"])
def test_a_mistyped_recipe_is_no_model_on_a_server(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pairs", target, "--engine.name", "openai"]) == 1
    said = capsys.readouterr().err
    assert f"no recipe '{target}'" in said
    assert "Did you mean" in said
    assert f"--model {target}" in said


def test_a_name_without_a_slash_is_no_model_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pairs", "some-model"]) == 1
    assert "no recipe 'some-model'" in capsys.readouterr().err
