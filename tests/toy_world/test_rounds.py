"""Rounds for real, in the toy world: three in a row, killed, grown, stopped, and with every choice."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sao.analysis.audit import audit
from sao.config import load_recipe
from sao.errors import ConfigError
from sao.method import run
from sao.models.chat import ChatTokenizer
from sao.models.load import load_model
from sao.pipeline.folder import recorded
from sao.pipeline.players import player
from sao.pipeline.reader import Reader
from sao.report.summary import show_summary
from sao.results.summary import Summary
from sao.sweep.cells import Cells
from sao.sweep.loop import run_cells
from sao.sweep.plan import make_plan
from support.checks import known
from support.run_files import files, json_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SMALL = {
    "personas.n": "150", "personas.held_out": "40", "engine.threads": "1", "rounds.n": "3",
    "evaluation.bootstrap": "500", "seed": "3", "rounds.stop": "[]",
}  # fmt: skip
RECORDS = ("records.jsonl", "drops.jsonl", "stage.json")
KEPT = ("records.jsonl", "drops.jsonl", "stage.json", "metrics.jsonl", "model.safetensors", "round.json")


def rounds(root: Path, **changes: Any) -> Summary:
    keys = {key.replace("__", "."): str(value) for key, value in changes.items()}
    return run(load_recipe("demo-rounds", {**SMALL, **keys}), root)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rounds") / "whole"
    rounds(root)
    return root


def of_rounds(found: dict[str, bytes], numbers: tuple[int, ...]) -> dict[str, bytes]:
    return {
        name: text for name, text in found.items() if name.startswith(tuple(f"round-{n}/" for n in numbers))
    }


def test_three_rounds_and_nothing_to_do_afterwards(whole: Path) -> None:
    summary = rounds(whole)
    assert not summary.worked
    assert [result.round for result in summary.rounds] == [1, 2, 3]
    assert summary.paths["model"] == str(recorded(whole, known(summary.best)).round.model_dir)
    assert player("tuned", str(whole)).model == summary.paths["model"]
    assert player("tuned", str(whole), 2).model == str(whole / summary.rounds[1].model)
    for result in summary.rounds:
        assert result.pairs == recorded(whole, result.round).stage("pairs").counts.records > 20
        assert known(result.oracle).before == known(summary.rounds[0].oracle).before
        assert (result.previous == result.initial) == (result.round == 1)
    shown = show_summary(summary)
    assert f"best round   {summary.best}; its model is the run's" in shown
    assert audit(recorded(whole, 2)).judge.verdicts != audit(recorded(whole, 3)).judge.verdicts


def test_no_round_trains_on_a_held_out_prompt_nor_asks_a_persona_twice(whole: Path) -> None:
    readers = [recorded(whole, number) for number in (1, 2, 3)]
    held_out = {prompt.conversation for prompt in readers[0].asked(held_out=True)}
    people: set[str] = set()
    for number, reader in enumerate(readers, 1):
        asked = [prompt.conversation for prompt in reader.asked(held_out=False)]
        if number > 1:
            assert not held_out & set(asked)
            assert list(reader.asked(held_out=True)) == list(readers[0].asked(held_out=True))
        own = {persona["id"] for persona in json_rows(reader.stage("personas").path / "records.jsonl")}
        assert not own & people
        people |= own


def test_more_rounds_go_on_from_those_that_are_there(whole: Path, tmp_path: Path) -> None:
    rounds(tmp_path, rounds__n=2)
    before = of_rounds(files(tmp_path, KEPT), (1, 2))
    rounds(tmp_path)
    after = files(tmp_path, KEPT)
    assert of_rounds(after, (1, 2)) == before
    assert after == files(whole, KEPT)


def test_another_rate_in_the_third_round_changes_that_round_alone(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    before = files(tmp_path / "run", KEPT)
    summary = rounds(tmp_path / "run", rounds__lr="[3e-4, 3e-4, 1e-4]")
    assert summary.worked
    after = files(tmp_path / "run", KEPT)
    new = {name for name in after if name not in before}
    assert new
    assert all(name.startswith("round-3/") for name in new)
    assert of_rounds(after, (1, 2)) == of_rounds(before, (1, 2))


def test_a_sweep_keeps_the_rounds_of_each_cell_and_shares_the_first(tmp_path: Path) -> None:
    config = load_recipe("demo-rounds", {**SMALL, "rounds.n": "2"})
    plan = make_plan(config, ["rounds.judge=current", "seed=3"], tmp_path)
    run_cells(plan)
    cells = list(Cells(tmp_path).read().values())
    assert [cell.error for cell in cells] == [None, None]
    for cell in cells:
        assert [result.round for result in cell.rounds] == [1, 2]
        assert cell.best in (1, 2)
        assert cell.measures
    assert cells[0].rounds[0] == cells[1].rounds[0]
    assert [known(cell.rounds[1].judge).agreement is None for cell in cells] == [True, False]
    assert len(list((tmp_path / cells[0].run).glob("round-1/train-*"))) == 1
    stopped = make_plan(config, ["rounds.stop=[],[length]", "seed=3"], tmp_path)
    assert len(stopped.cells) == 2  # which rounds there are counts, too


def bytes_in(folder: Path) -> int:
    """Bytes of the records and metrics under a folder that another process is writing."""
    total = 0
    for path in (*folder.rglob("*.jsonl"), *folder.rglob("part-*")):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # renamed between the listing and here
            continue
    return total


def test_twenty_kills_change_nothing(whole: Path, tmp_path: Path) -> None:
    """At random moments, counted in bytes, of all three rounds."""
    root = tmp_path / "killed"
    command = [sys.executable, "-m", "sao", "run", "demo-rounds", "--out", str(root), "--quiet"]
    command += [word for key, value in SMALL.items() for word in (f"--{key}", value)]
    share = bytes_in(whole) // 21
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    draw, kills = random.Random(5), 0
    while kills < 20:
        until = bytes_in(root) + draw.randrange(1, share)
        with subprocess.Popen(command, **quiet, env=env, start_new_session=True) as process:
            while process.poll() is None and bytes_in(root) < until:
                time.sleep(0.02)
            if process.poll() is not None:  # too quick to be killed here: once more from the start
                assert process.returncode == 0
                assert files(root, KEPT) == files(whole, KEPT)
                shutil.rmtree(root)
                continue
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
    rounds(root)
    assert files(root, KEPT) == files(whole, KEPT)


def test_two_processes_train_the_second_round_too(whole: Path, tmp_path: Path) -> None:
    summary = rounds(tmp_path, rounds__n=2, train__processes=2, train__micro_batch_size=16)
    assert [result.round for result in summary.rounds] == [1, 2]
    ours, alone = (recorded(root, 1).round.model_dir for root in (tmp_path, whole))
    one, other = (load_model(str(folder), recorded(whole).config.engine) for folder in (ours, alone))
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4, msg=name)


def test_a_collapse_is_stopped_in_the_round_in_which_it_happens(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    plain = "[length, repetition, cut_off, win_rate, gold, pairs, judge, converged]"
    summary = rounds(tmp_path / "run", rounds__lr="[3e-4, 0.05]", rounds__stop=plain)
    assert len(summary.rounds) == 2
    assert summary.stopped_by
    assert summary.best == 1
    assert summary.paths["model"] == str(tmp_path / "run" / summary.rounds[0].model)
    assert "stopped after round 2: " in show_summary(summary)


def test_a_judge_that_drifts_is_noticed(tmp_path: Path) -> None:
    """Round 2's judge is a model that round 1 trained at too high a rate."""
    summary = rounds(tmp_path, rounds__judge="current", rounds__lr="[0.013]", rounds__stop="[judge]")
    assert len(summary.rounds) == 2
    (sentence,) = summary.stopped_by
    assert "of the verdicts" in sentence or "the judge agrees" in sentence
    assert known(known(summary.rounds[1].judge).agreement).n > 10


def test_a_round_that_cannot_be_finished_ends_the_run_with_what_came_before(tmp_path: Path) -> None:
    """Round 1 is trained until it writes nothing that can be read."""
    summary = rounds(tmp_path, rounds__lr="[0.03]")
    assert [result.round for result in summary.rounds] == [1]
    (sentence,) = summary.stopped_by
    assert sentence.startswith("round 2 could not be finished: prompts: ")
    assert summary.best == 1
    assert summary.paths["model"] == str(tmp_path / summary.rounds[0].model)


def test_models_that_are_not_kept_are_made_again_where_they_are_needed(whole: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(whole, root)
    best = known(rounds(root, rounds__keep="best").best)
    others = [number for number in (1, 2, 3) if number != best]
    assert recorded(root, best).round.is_trained
    for other in others:
        gone = recorded(root, other).round.model_dir
        assert sorted(p.name for p in gone.iterdir()) == ["README.md", "removed.json", "sao_manifest.json"]
        assert len(list(recorded(root, other).labelled())) > 20  # records stay
        with pytest.raises(ConfigError, match="was deleted"):
            player("tuned", str(root), other)
    assert not rounds(root, rounds__keep="best").worked
    fewer = rounds(root, rounds__keep="best", rounds__n=2)  # if another is the best now, it is made again
    assert recorded(root, known(fewer.best)).round.is_trained
    longer = rounds(root, rounds__n=4, train__processes=2, train__micro_batch_size=16)
    assert [result.round for result in longer.rounds] == [1, 2, 3, 4]
    rounds(tmp_path / "undisturbed", rounds__n=4)
    first, second = (
        of_rounds(files(place, RECORDS), (1, 2, 3)) for place in (root, tmp_path / "undisturbed")
    )
    assert first == second


def test_more_held_out_prompts_are_held_out_of_all_rounds(tmp_path: Path) -> None:
    rounds(tmp_path, rounds__n=2, rounds__keep="best")
    summary = rounds(tmp_path, rounds__n=2, personas__held_out=60)
    first, second = (recorded(tmp_path, number) for number in (1, 2))
    held_out = {prompt.conversation for prompt in first.asked(held_out=True)}
    assert len(list(second.held_out())) == len(list(first.held_out())) > 50
    assert not held_out & {prompt.conversation for prompt in second.asked(held_out=False)}
    assert len(summary.rounds) == 2


def test_every_choice_of_who_writes_judges_and_is_trained(tmp_path: Path) -> None:
    choices = {
        "judge": "both",
        "rejected": "initial",
        "data": "all",
        "reference": "initial",
        "personas": "same",
    }
    own = {f"rounds__{key}": value for key, value in choices.items()}
    dpo: dict[str, Any] = {"train__loss": "dpo", "train__gamma": "null", "train__beta": "0.1"}
    summary = rounds(tmp_path, rounds__n=2, **own, **dpo)
    first, second = (recorded(tmp_path, number) for number in (1, 2))
    assert [len(run.judges) for run in (first, second)] == [1, 2]
    assert known(known(summary.rounds[1].judge).agreement).n > 20
    for _, _, chosen, rejected in second.labelled():
        assert (chosen.index, rejected.index) == (0, 1)
    pairs = [run.stage("pairs").counts.records for run in (first, second)]
    assert second.stage("train").counts.records == sum(pairs)
    card = (second.round.model_dir / "README.md").read_text("utf-8")
    for number, n in enumerate(pairs, 1):
        assert re.search(rf"\| round {number}: pairs +\| +{n} +\|", card), card
    assert "that the base model and the models of the rounds before it wrote" in " ".join(card.split())
    assert second.stage("personas").path == first.stage("personas").path
    _same_as_the_first_models(second)


def _same_as_the_first_models(run: Reader) -> None:
    """The reference's sums are those of the first model's own logits."""
    engine = run.config.engine
    chat, model = ChatTokenizer.load("builtin:world", engine), load_model("builtin:world", engine)
    sums = {row["id"]: row for row in json_rows(run.stage("train").path / "reference.jsonl")}
    prompt, pair, chosen, _ = next(run.labelled())
    ids = [*chat.prompt_ids(_messages(prompt.text)), *known(chosen.token_ids)]
    with torch.inference_mode():
        logps = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    start = len(ids) - len(known(chosen.token_ids))
    plain = sum(float(logps[i - 1, ids[i]]) for i in range(start, len(ids)))
    assert sums[pair.id]["chosen"] == pytest.approx(plain, abs=1e-3)


def _messages(text: str) -> list[Any]:
    from sao.records import Message

    return [Message("user", text)]
