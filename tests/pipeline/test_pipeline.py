"""The whole chain up to the pairs with the scripted engine: reuse, resume, funnel, errors."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from sao.cli import main
from sao.config import Config, make_config
from sao.engines import Sampling
from sao.engines.scripted import ScriptedEngine
from sao.errors import ConfigError, DropError, ModelError, StoreError, TrainingError
from sao.method import run
from sao.pipeline.folder import recorded
from sao.records import Message, Prompt
from sao.store.stage import Stage
from sao.training.cards import push_model
from support.checks import known
from support.errors import raises
from support.run_files import drops_of, files

BASE: dict[str, Any] = {
    "engine": {"name": "scripted"},
    "personas": {"source": "builtin:world", "n": 60, "held_out": 10},
}


def config(**sections: Any) -> Config:
    return make_config({**BASE, **sections})


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    first = run(config(), tmp_path, until="pairs", engine=engine)
    calls = engine.calls
    again = run(config(), tmp_path, until="pairs", engine=engine)
    assert (first.worked, again.worked) == (True, False)
    assert engine.calls == calls == 70 + 2 * 60 + 2 * 60
    assert first.funnel == again.funnel


def test_the_funnel_adds_up(tmp_path: Path) -> None:
    def reply(messages: tuple[Message, ...], seed: int, sampling: Sampling) -> str:
        return "" if seed % 7 == 0 else f"Prompt: number {seed % 1000}"

    summary = run(config(), tmp_path, until="pairs", engine=ScriptedEngine(reply=reply))
    stages = {row.stage: row for row in summary.funnel}
    for row in stages.values():
        assert row.dropped == sum(row.reasons.values())
    held_out = 10
    assert stages["prompts"].records + stages["prompts"].dropped == 60 + held_out
    answers = stages["responses"].records + stages["responses"].dropped
    assert answers % 2 == 0
    assert 60 - stages["prompts"].dropped <= answers / 2 <= 60
    assert stages["pairs"].records + stages["pairs"].dropped == answers / 2
    drops = drops_of(tmp_path, "responses")
    assert len(drops) == stages["responses"].dropped > 0
    assert {d["reason"] for d in drops} == {"empty"}


def test_another_judge_reuses_the_answers_and_says_what_changed(tmp_path: Path) -> None:
    run(config(), tmp_path, until="pairs", engine=ScriptedEngine())
    before = files(tmp_path)
    engine, said = ScriptedEngine(), []  # type: ignore[var-annotated]
    run(config(judging={"method": "random"}), tmp_path, until="pairs", engine=engine, notify=said.append)
    assert engine.calls == 0
    assert any("judging.method: 'logprob' → 'random'" in line for line in said)
    after = files(tmp_path)
    assert before.items() <= after.items()  # the older variant stays beside it
    assert len(list(tmp_path.glob("round-1/judgments-*"))) == 2
    assert len(list(tmp_path.glob("round-1/responses-*"))) == 1


@pytest.mark.parametrize("change", [{"seed": 5}, {"personas": {**BASE["personas"], "n": 50}}])
def test_another_seed_or_other_personas_in_a_used_folder_is_refused(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    run(config(), tmp_path, until="respond", engine=ScriptedEngine())
    before = files(tmp_path)
    with raises(
        StoreError,
        key="run folder",
        match=r"(another run: config\.seed: 0 → 5|personas\.n: 60 → 50, but a run can only grow).*--out",
    ):
        run(config(**change), tmp_path, until="pairs", engine=ScriptedEngine())
    with raises(StoreError, key="run folder", match="model_identity"):
        run(config(), tmp_path, until="pairs", engine=ScriptedEngine(identity="other weights"))
    assert files(tmp_path) == before


def test_a_recipe_changed_half_way_keeps_what_still_holds(tmp_path: Path) -> None:
    def stopping(messages: tuple[Message, ...], choices: tuple[str, ...]) -> tuple[float, ...]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config(), tmp_path, until="pairs", engine=ScriptedEngine(choose=stopping))
    engine = ScriptedEngine()
    summary = run(config(judging={"orders": "one"}), tmp_path, until="pairs", engine=engine)
    assert engine.calls == 60
    assert known(summary.judge).verdicts == 60


def test_an_edited_persona_file_under_a_half_done_run_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("\n".join(f"person {i}" for i in range(70)))
    people = {**BASE["personas"], "source": str(file)}
    run(config(personas=people), tmp_path / "run", until="respond", engine=ScriptedEngine())
    before = files(tmp_path / "run")
    file.write_text(file.read_text().replace("person 3", "nobody"))
    with raises(StoreError, key="run folder", match="persona_identity"):
        run(config(personas=people), tmp_path / "run", until="pairs", engine=ScriptedEngine())
    assert files(tmp_path / "run") == before


def test_a_model_that_answers_nothing_ends_the_run_with_reasons(tmp_path: Path) -> None:
    few = {"source": "builtin:world", "n": 20, "held_out": 5}
    with raises(
        DropError,
        key="max_drop_share",
        match=r"prompts: 25 of 25.*empty \(25\)",
    ):
        run(config(personas=few), tmp_path, until="pairs", engine=ScriptedEngine(reply=lambda m, seed, s: ""))


def test_no_pairs_is_an_error_that_says_why(tmp_path: Path) -> None:
    always_first = ScriptedEngine(choose=lambda m, c: (-0.1, -2.4))
    with raises(TrainingError, key="pairs", match="tie"):
        run(config(), tmp_path, until="train", engine=always_first)


def test_oracle_outside_the_toy_world_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n".join(f"person {i}" for i in range(70)))
    personas = {**BASE["personas"], "source": str(tmp_path / "p.txt")}
    with raises(ConfigError, key="judging.method"):
        run(
            config(model="other", personas=personas, judging={"method": "oracle"}),
            tmp_path / "run",
            until="pairs",
        )


def test_an_unwritable_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with raises(StoreError, key="manifest.json", match="file"):
        run(config(), tmp_path / "file" / "run", until="pairs", engine=ScriptedEngine())


def test_a_missing_model_is_found_before_any_work(tmp_path: Path) -> None:
    missing = make_config({"model": str(tmp_path / "nowhere"), "personas": BASE["personas"]})
    with raises(ModelError, key="model"):
        run(missing, tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with raises(ModelError, key="config.json", match=r"no config\.json"):
        run(make_config({"model": str(tmp_path / "empty")}), tmp_path / "run")
    (tmp_path / "empty" / "config.json").write_text("{}")
    with raises(ModelError, key="weights"):
        run(make_config({"model": str(tmp_path / "empty")}), tmp_path / "run")


def test_a_broken_persona_file_loses_nothing(tmp_path: Path) -> None:
    lines = [json.dumps({"persona": f"person {i}"}) for i in range(70)]
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join([*lines[:40], '{"persona": ', *lines[40:]]))
    personas = {**BASE["personas"], "source": str(file)}
    from sao.errors import DataError

    with raises(DataError, key="JSON", match=r"p\.jsonl, line 41.*Mend or delete the line"):
        run(config(personas=personas), tmp_path / "run", until="pairs", engine=ScriptedEngine())


SCRIPT = textwrap.dedent("""
    import sys
    from sao.config import make_config
    from sao.engines.scripted import ScriptedEngine
    from sao.method import run
    config = make_config({"engine": {"name": "scripted"},
                          "personas": {"source": "builtin:world", "n": 150, "held_out": 10}})
    run(config, sys.argv[1], until="pairs", engine=ScriptedEngine(delay=0.001))
""")


def bytes_in(folder: Path) -> int:
    """Bytes of all files under a folder that another process is writing."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a part may be renamed between the listing and here
            total += path.stat().st_size
    return total


@pytest.mark.slow
def test_sigkill_at_random_moments_changes_nothing(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "whole")], check=True)
    # moments are counted in bytes: a faster machine is killed as often
    share = bytes_in(tmp_path / "whole") // 12
    rng, kills = random.Random(1), 0
    while kills < 10:
        until = bytes_in(tmp_path / "killed") + rng.randrange(1, share)
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "killed")], start_new_session=True
        )
        while process.poll() is None and bytes_in(tmp_path / "killed") < until:
            time.sleep(0.002)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        kills += 1
        process.wait()
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "killed")], check=True)
    assert kills >= 3
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob("part-*"))


def test_too_many_drops_stop_the_second_call_too(tmp_path: Path) -> None:
    for _ in range(2):
        with raises(DropError, key="max_drop_share", match="32 of the first 32"):
            run(config(), tmp_path, until="pairs", engine=ScriptedEngine(reply=lambda m, seed, s: ""))
    summary = run(config(max_drop_share=1.0), tmp_path, until="prompts", engine=ScriptedEngine())
    assert summary.funnel[0].dropped == 32  # the same command goes on with the others


@pytest.mark.parametrize(
    ("key", "package"),
    [
        ({"report_to": ["wandb"]}, "wandb"),
        ({"method": "lora"}, "peft"),
        ({"optimizer": "adamw_8bit"}, "bitsandbytes"),
    ],
)
def test_a_package_that_training_will_need_is_missed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: dict[str, Any], package: str
) -> None:
    monkeypatch.setattr("sao.store.manifest.find_spec", lambda name: None if name == package else object())
    with raises(ConfigError, key=package, match="pip install"):
        run(config(train=key), tmp_path, engine=ScriptedEngine())
    assert not list(tmp_path.iterdir())
    run(config(train=key), tmp_path, until="pairs", engine=ScriptedEngine())  # nothing is trained there


def test_a_model_goes_to_the_hub_or_stays_with_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    class Hub:
        def create_repo(self, name: str, **more: Any) -> None:
            if name == "me/refused":
                raise OSError("401 Unauthorized")
            calls.append((name, more))

        def upload_folder(self, **more: Any) -> str:
            calls.append(("upload", more))
            return "the address"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    (tmp_path / "README.md").write_text("card")
    assert push_model(tmp_path, "me/model") == "the address"
    assert [name for name, _ in calls] == ["me/model", "upload"]
    assert calls[0][1]["private"] is True
    assert calls[1][1]["folder_path"] == tmp_path
    with raises(StoreError, key="train.push_to_hub", match="401.*hf upload me/refused"):
        push_model(tmp_path, "me/refused")


def test_a_run_is_read_without_what_lay_outside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(home)
    Path("people.txt").write_text("\n".join(f"person {i}" for i in range(70)))
    Path("ask.txt").write_text("Say as this persona: {persona}")
    Path("bench.jsonl").write_text('{"prompt": "some question that nobody asks here"}\n')
    run(
        config(
            personas={"source": "people.txt", "n": 60, "held_out": 10},
            prompts={"template": "ask.txt"},
            filters={"decontaminate": ["bench.jsonl"]},
        ),
        tmp_path / "run",
        until="pairs",
    )
    for name in ("people.txt", "ask.txt", "bench.jsonl"):
        Path(name).unlink()
    monkeypatch.chdir(elsewhere)
    folder = recorded(tmp_path / "run")
    assert len(list(folder.labelled())) > 0
    assert {row.stage for row in folder.funnel()} >= {"prompts", "filtered", "filtered_responses", "pairs"}
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "data")]) == 0
    assert main(["stats", str(tmp_path / "run")]) == 0
    assert main(["audit", str(tmp_path / "run")]) == 0


def test_two_processes_in_one_folder_lose_nothing(tmp_path: Path) -> None:
    """Both write all; the slower one finds the stage sealed when it comes to sealing."""
    stage = [Stage(tmp_path, "prompts", {}).open() for _ in range(2)]
    rows = [Prompt(id=f"{i:016x}", row=i, persona_id="p", text=str(i)) for i in range(50)]
    slow = stage[1].writer()
    with slow:
        for row in rows[:20]:
            slow.write(row)
        slow.flush()
        with stage[0].writer() as fast:
            for row in rows:
                fast.write(row)
        stage[0].seal(Prompt)
        for row in rows[20:]:
            slow.write(row)
    stage[1].seal(Prompt)
    assert [p.row for p in stage[0].records(Prompt)] == list(range(50))
    assert stage[1].counts.records == 50


@pytest.mark.parametrize("written", [None, 2])
@pytest.mark.parametrize("command", ["run", "audit", "stats", "export", "contamination", "label", "eval"])
def test_a_folder_of_an_earlier_format_is_refused_and_left_alone(
    tmp_path: Path, command: str, written: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Folders had no format before the second one. What is in them hangs on other ids, and the recipe in the
    manifest has keys that are called otherwise now."""
    root = tmp_path / "old"
    (root / "round-1" / "personas-0000abcd").mkdir(parents=True)
    (root / "round-1" / "personas-0000abcd" / "records.jsonl").write_text("")
    (root / "round-1" / "prompts-0000abcd").mkdir()
    stage = {"stage": "prompts", "settings": {}, "counts": {"records": 0, "dropped": 0, "reasons": {}}}
    (root / "round-1" / "prompts-0000abcd" / "stage.json").write_text(json.dumps(stage))
    recipe = config().model_dump(mode="json")
    recipe["eval"] = recipe.pop("evaluation")
    manifest: dict[str, Any] = {"config": recipe, "model_identity": "x", "outside": {}}
    manifest |= {} if written is None else {"format": written, "sizes": [[60, 10]]}
    (root / "manifest.json").write_text(json.dumps(manifest))
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    arguments = {
        "run": ["run", "demo", "--engine.name", "scripted", "--out", str(root)],
        "contamination": ["contamination", str(root), "--sets", str(root / "manifest.json")],
        "eval": ["eval", "--base", "builtin:world", "--tuned", str(root), "--out", str(tmp_path / "eval")],
    }
    assert main(arguments.get(command, [command, str(root)])) == 1
    said = capsys.readouterr().err
    found = f"a run folder of format {written or 1}, which this version of SAO (format 3) does not read"
    assert f"StoreError: {root}: {found}" in said
    assert "Use another folder with --out" in said
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
