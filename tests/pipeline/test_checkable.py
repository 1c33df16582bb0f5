"""Checkable prompts: the step that appends constraints, judging by them, the audit of a judge on them."""

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sao import checks
from sao.analysis.audit import audit
from sao.cli.app import main
from sao.config import Config, PromptsConfig, make_config
from sao.engines import Engine
from sao.engines.scripted import ScriptedEngine
from sao.errors import ConfigError, ModelError, StoreError
from sao.execution.session import Role
from sao.execution.step import Work
from sao.method import run
from sao.pipeline.checkable import make_base_logprobs, with_checks
from sao.pipeline.folder import reader
from sao.pipeline.reader import Reader
from sao.pipeline.rounds import Round
from sao.pipeline.steps import STEPS
from sao.records import Constraint, Prompt, from_dict, to_dict
from sao.report.audit import show_audit
from sao.stages import rows
from support import planted
from support.checks import known
from support.errors import raises

SIZE = 300


@pytest.fixture(autouse=True)
def _one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted answers have up to 40 words; some of the prompts allow fewer."""
    monkeypatch.setattr(checks, "TRAINED", ("max_words",))
    monkeypatch.setattr(checks, "UNSEEN", ("max_words",))


def recipe(**sections: Any) -> Config:
    base = {
        "model": "scripted",
        "engine": {"name": "scripted"},
        "personas": {"source": "builtin:world", "n": SIZE, "held_out": 10},
        "prompts": {"checkable": 1.0},
        "filters": {"max_words": None},
        "pairs": {"keep": "all"},
    }
    return make_config({**base, **sections})


def finished(root: Path, config: Config, p_first: Any = planted.always_longer) -> Reader:
    engine = ScriptedEngine(reply=planted.reply, choose=planted.judge(p_first))
    run(config, root, until="pairs", engine=engine)
    return reader(config, root, engine)


def test_a_share_of_the_prompts_gets_constraints_and_a_larger_share_adds_to_it(tmp_path: Path) -> None:
    found = {}
    for share in (0.3, 0.6):
        config = recipe(prompts={"checkable": share}, evaluation={"checkable": 0.5})
        folder = finished(tmp_path, config)
        assert {prompt.row for prompt in folder.asked(held_out=True)} == {
            rows.persona_row(i, held_out=True) for i in range(10)
        }
        asked = list(folder.asked(held_out=False))
        found[share] = {prompt.row: prompt.text for prompt in asked if prompt.checks}
        assert all(prompt.text.endswith("?") != bool(prompt.checks) for prompt in asked)
    assert abs(len(found[0.3]) / SIZE - 0.3) < 0.1
    assert abs(len(found[0.6]) / SIZE - 0.6) < 0.1
    assert found[0.3].items() <= found[0.6].items()


def test_without_the_keys_there_is_no_such_step(tmp_path: Path) -> None:
    folder = finished(tmp_path, recipe(prompts={}))
    assert not list(tmp_path.glob("round-1/checkable-*"))
    assert folder.checks is None
    assert audit(folder).checks is None


def test_constraints_are_records_and_other_versions_constraints_are_errors() -> None:
    prompt = Prompt(id="a", row=0, persona_id="p", text="t", checks=(Constraint("max_words", {"n": 20}),))
    assert from_dict(Prompt, json.loads(json.dumps(to_dict(prompt)))) == prompt
    assert "checks" not in to_dict(Prompt(id="a", row=0, persona_id="p", text="t"))
    with raises(StoreError, key="checks"):
        checks.score("text", [Constraint("no such kind", {})])


def test_what_is_drawn_depends_on_seed_and_prompt_alone() -> None:
    prompt = Prompt(id="0" * 16, row=0, persona_id="p", text="Tell me of rice.")
    random.seed(1)
    first = with_checks(prompt, PromptsConfig(), 1.0, 3, "new")
    random.seed(2)
    assert with_checks(prompt, PromptsConfig(), 1.0, 3, "new") == first
    assert first.text.startswith("Tell me of rice. ")
    others = {with_checks(prompt, PromptsConfig(), 1.0, seed, "new").text for seed in range(20)}
    assert len(others) > 3


def test_labels_by_constraints_are_right_and_equal_answers_get_none(tmp_path: Path) -> None:
    folder = finished(tmp_path, recipe(judging={"method": "checks"}))
    found = known(audit(folder).checks)
    assert found.accuracy.rate == 1.0
    assert found.both_orders.rate == 1.0
    score = known(folder.checks)
    labelled = list(folder.labelled())
    assert 20 < len(labelled) < SIZE
    for prompt, _, chosen, rejected in labelled:
        assert known(score(prompt.text, chosen.text)) > known(score(prompt.text, rejected.text))
    assert folder.stage("pairs").counts.reasons["tie"] == SIZE - len(labelled)


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_flipped_labels_are_wrong_in_both_orders_alike(tmp_path: Path, share: float) -> None:
    folder = finished(tmp_path, recipe(judging={"method": "checks", "flipped": share}))
    report = audit(folder)
    low, high = known(report.checks).both_orders.ci95
    assert low <= 1 - share <= high
    assert report.judge.flip_rate.rate == 0.0


def test_checks_need_checkable_prompts() -> None:
    with raises(ConfigError, key="recipe"):
        recipe(prompts={}, judging={"method": "checks"})


@pytest.mark.parametrize("accuracy", [0.5, 0.8])
def test_the_audit_recovers_a_judge_s_accuracy_on_constraints(tmp_path: Path, accuracy: float) -> None:
    """The shorter answer keeps at least as much, so a judge that likes it with this probability is right as
    often."""

    def likes_short(first: str, second: str) -> float:
        low, high = sorted((first, second))
        right = planted.unit(low, high, "noise") < accuracy
        return 0.9 if (len(first.split()) < len(second.split())) == right else 0.1

    folder = finished(tmp_path, recipe(), likes_short)
    report = audit(folder)
    found = known(report.checks)
    low, high = found.accuracy.ci95
    assert low <= accuracy <= high
    (kind,) = found.kinds
    assert (kind.kind, kind.counted, found.left_out) == ("max_words", True, [])
    assert kind.accuracy == found.accuracy
    assert report.judge.accuracy.rate == found.accuracy.rate
    shown = show_audit(report)
    assert "on constraints" in shown
    assert "max_words" in shown


def test_kinds_that_nearly_all_answers_keep_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        checks, "draw", lambda rng, text, names, most: (Constraint("max_words", {"n": rng.choice((80, 90))}),)
    )
    found = known(audit(finished(tmp_path, recipe())).checks)
    assert found.left_out == ["max_words"]
    assert (found.accuracy.n, found.accuracy.rate) == (0, None)


@pytest.mark.slow
def test_before_and_after_in_the_toy_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--prompts.checkable", "0.5", "--evaluation.checkable", "1", "--personas.n", "200"]
    command = ["run", "demo", *options, "--personas.held_out", "40", "--out", str(tmp_path), "--json"]
    assert main(command) == 0
    shown, _, last = capsys.readouterr().out.rstrip().rpartition("\n")
    found = json.loads(last)["checks"]
    assert found["trained"]["n"] + found["unseen"]["n"] >= 0
    assert sum(kind["n"] for kind in found["kinds"]) > 10
    assert "answers words" in shown
    assert all(kind["kind"] in shown for kind in found["kinds"])
    assert "base's log-probability" in shown
    assert found["base"]["base_logprob"] > found["tuned"]["base_logprob"] - 0.5
    assert found["base"]["base_logprob"] < 0


@pytest.mark.slow
def test_the_judge_of_the_evaluation_can_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The oracle's gain is the same with it and without, and nothing is trained or answered again."""
    command = ["run", "demo", "--personas.n", "100", "--personas.held_out", "20", "--out", str(tmp_path)]
    gains = {}
    for judged in ("false", "true"):
        assert main([*command, "--evaluation.judged", judged, "--json"]) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        gains[judged] = found["oracle"]["gain"]
        assert (found["heldout"] is not None) == (judged == "true")
        assert bool(list(tmp_path.glob("round-1/comparisons-*"))) == (judged == "true")
    assert gains["true"] == gains["false"]
    assert len(list(tmp_path.glob("round-1/train-*"))) == 1


def test_kinds_and_number_of_constraints_are_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # all kinds
    asked = PromptsConfig(check_kinds=("no_commas", "question_end"), max_checks=1)
    found = [
        with_checks(Prompt(id=f"{i:016x}", row=row, persona_id="p", text="Rice?"), asked, 1.0, 3, "n")
        for i in range(100)
        for row in (rows.persona_row(i, held_out=False), rows.persona_row(i, held_out=True))
    ]
    training, held_out = found[::2], found[1::2]
    assert {len(prompt.checks) for prompt in found} == {1}
    assert {check.kind for prompt in training for check in prompt.checks} == {"no_commas", "question_end"}
    kinds = {check.kind for prompt in held_out for check in prompt.checks}
    assert kinds == {"no_commas", "question_end", *checks.UNSEEN}


def test_a_base_that_cannot_be_read_says_how_to_go_on() -> None:
    """After hours of training: the reading of its answers can be left out."""

    def engine(role: Role) -> Engine:
        raise ModelError("does not fit", key="engine.device")

    round_ = Round(make_config({"model": "builtin:world"}), Path("x"), STEPS)
    work = SimpleNamespace(config=round_.config, run=round_, engine=engine)
    with raises(ModelError, key="engine.device", match="does not fit.*--evaluation.base_logprobs false"):
        next(make_base_logprobs(cast(Work[Round], work)))
