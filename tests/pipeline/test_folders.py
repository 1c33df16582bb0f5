"""A run folder in odd states: given up sizes, changed recipes, unfinished imports, files that somebody
edited."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sao.config import Config, load_recipe, make_config
from sao.engines import Usage
from sao.engines.scripted import ScriptedEngine
from sao.errors import DataError, SAOError, StoreError
from sao.execution.session import Role, Session
from sao.method import keep_summary, run
from sao.pipeline.folder import reader, recorded
from sao.pipeline.rounds import Round
from sao.pipeline.steps import STEPS
from sao.records import Prompt
from sao.sharing import import_pairs as importing
from sao.stages.rows import is_held_out
from support.errors import raises


def config(n: int = 12, held_out: int = 4, **sections: Any) -> Config:
    personas = {"source": "builtin:general", "n": n, "held_out": held_out}
    return make_config({"engine": {"name": "scripted"}, "personas": personas, **sections})


def test_a_size_that_cannot_be_is_given_up(tmp_path: Path) -> None:
    run(config(12), tmp_path, until="prompts", engine=ScriptedEngine())
    with raises(DataError, key="personas.n"):
        run(config(100_000), tmp_path, until="prompts", engine=ScriptedEngine())
    run(config(20), tmp_path, until="respond", engine=ScriptedEngine())
    prompts = reader(config(20), tmp_path, ScriptedEngine()).stage("prompts").records(Prompt)
    assert sum(not is_held_out(prompt.row) for prompt in prompts) == 20
    assert json.loads((tmp_path / "manifest.json").read_text())["sizes"] == [[12, 4], [20, 4]]


def test_rows_of_a_size_that_was_given_up_are_left_out(tmp_path: Path) -> None:
    run(config(12), tmp_path, until="prompts", engine=ScriptedEngine())

    def stop(step: str, done: int, total: int) -> None:
        if step == "prompts" and done > 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config(400), tmp_path, until="prompts", engine=ScriptedEngine(), progress=stop)
    run(config(15), tmp_path, until="judge", engine=ScriptedEngine())
    run(config(15), tmp_path / "plain", until="judge", engine=ScriptedEngine())
    for kind in ("personas", "prompts", "filtered", "responses", "judgments"):
        paths = (
            next(root.glob(f"round-1/{kind}-*/records.jsonl")) for root in (tmp_path, tmp_path / "plain")
        )
        if kind != "filtered":
            assert next(paths).read_bytes() == next(paths).read_bytes()


def test_given_pairs_in_the_folder_of_a_run(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(8)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(config(), tmp_path / "run", until="pairs", engine=ScriptedEngine())
    given = config(pairs={"source": str(tmp_path / "p.jsonl")})
    run(given, tmp_path / "run", until="prompts", engine=ScriptedEngine())
    assert len(list(reader(given, tmp_path / "run", ScriptedEngine()).asked(held_out=True))) == 4
    again = run(config(), tmp_path / "run", until="pairs", engine=ScriptedEngine())
    assert not again.worked


def imported(tmp_path: Path, **settings: str) -> Config:
    rows = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(12)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = load_recipe("default", {"pairs.source": str(tmp_path / "p.jsonl")})
    done = importing.import_pairs(source, tmp_path / "run", 2)
    return load_recipe(done.recipe, {"engine.name": "scripted", **settings})


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": "3"},
        {"judging.prefill": "x"},
        {"judging.temperature": "0.1"},
        {"judging.comparisons_per_answer": "2"},
    ],
)
def test_an_import_goes_on_with_another_seed_or_judge(tmp_path: Path, settings: dict[str, str]) -> None:
    summary = run(imported(tmp_path, **settings), tmp_path / "run", until="pairs", engine=ScriptedEngine())
    assert {row.stage: row.records for row in summary.funnel}["pairs"] == 10


def test_the_same_set_under_another_name_is_the_same_import(tmp_path: Path) -> None:
    imported(tmp_path)
    (tmp_path / "p.jsonl").rename(tmp_path / "other.jsonl")
    source = load_recipe("default", {"pairs.source": str(tmp_path / "other.jsonl")})
    assert importing.import_pairs(source, tmp_path / "run", 2).pairs == 10


def test_an_import_that_was_killed_is_not_made_up(tmp_path: Path) -> None:
    recipe, engine = imported(tmp_path), ScriptedEngine()
    for kind in ("prompts", "responses", "judgments"):
        for path in (tmp_path / "run").glob(f"round-1/{kind}-*/*.json*"):
            path.unlink()
    with raises(DataError, key="run folder"):
        run(recipe, tmp_path / "run", until="judge", engine=engine)
    assert engine.calls == 0


def test_the_summary_on_disk_is_that_of_the_last_recipe(tmp_path: Path) -> None:
    first, other = config(), config(judging={"method": "longer"})
    for recipe in (first, other, first):
        keep_summary(tmp_path / "s.json", run(recipe, tmp_path, until="pairs", engine=ScriptedEngine()))
    assert json.loads((tmp_path / "s.json").read_text())["judging"] == "logprob"
    written = (tmp_path / "s.json").read_bytes()
    keep_summary(tmp_path / "s.json", run(first, tmp_path, until="pairs", engine=ScriptedEngine()))
    assert (tmp_path / "s.json").read_bytes() == written


def test_a_run_with_a_given_engine_is_read_back(tmp_path: Path) -> None:
    run(config(), tmp_path, until="pairs", engine=ScriptedEngine(identity="planted"))
    assert len(list(recorded(tmp_path).judged())) == 12


ODD: dict[str, Callable[[Path], object]] = {
    "no sizes": lambda root: edit(root / "manifest.json", lambda m: m.pop("sizes")),
    "no config": lambda root: edit(root / "manifest.json", lambda m: m.pop("config")),
    "sizes of one": lambda root: edit(root / "manifest.json", lambda m: m.update(sizes=[[1]])),
    "no sizes at all": lambda root: edit(root / "manifest.json", lambda m: m.update(sizes=[])),
    "a list": lambda root: (root / "manifest.json").write_text("[1]"),
    "stage {}": lambda root: stage_json(root).write_text("{}"),
    "stage null": lambda root: stage_json(root).write_text("null"),
    "stage without sizes": lambda root: edit(stage_json(root), lambda s: s.pop("sizes")),
    "stage with odd counts": lambda root: edit(stage_json(root), lambda s: s.update(counts={})),
    "a record of another kind": lambda root: records(root).write_text('{"a": 1}\n'),
    "a record that is a list": lambda root: records(root).write_text("[1]\n"),
}


def edit(path: Path, change: Callable[[Any], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def stage_json(root: Path) -> Path:
    return next(root.glob("round-1/responses-*/stage.json"))


def records(root: Path) -> Path:
    return next(root.glob("round-1/responses-*/records.jsonl"))


@pytest.mark.parametrize("odd", ODD)
def test_what_somebody_edited_is_named(tmp_path: Path, odd: str) -> None:
    run(config(), tmp_path, until="pairs", engine=ScriptedEngine())
    ODD[odd](tmp_path)
    with pytest.raises(SAOError, match=r"manifest\.json|stage\.json|records\.jsonl"):
        list(recorded(tmp_path).judged())


@pytest.mark.parametrize("line", ["{}", "[1]", '{"requests": "many"}'])
def test_a_line_of_usage_that_is_none(tmp_path: Path, line: str) -> None:
    run(config(), tmp_path, until="prompts", engine=ScriptedEngine())
    (tmp_path / "usage.jsonl").write_text(line + "\n")
    with raises(StoreError, key="usage.jsonl", match=r"usage\.jsonl, line 1: requests is no number"):
        run(config(), tmp_path, until="prompts", engine=ScriptedEngine())


@pytest.mark.parametrize("name", ["records.jsonl", "drops.jsonl"])
def test_a_file_that_is_gone_is_made_again(tmp_path: Path, name: str) -> None:
    run(config(), tmp_path, until="judge", engine=ScriptedEngine())
    before = records(tmp_path).read_bytes()
    records(tmp_path).with_name(name).unlink()
    with raises(StoreError, key="stage"):
        list(recorded(tmp_path).answered())
    run(config(), tmp_path, until="judge", engine=ScriptedEngine())
    assert records(tmp_path).read_bytes() == before
    assert len(list(recorded(tmp_path).judged())) == 12


def test_a_step_with_several_stages_is_asked_for_one(tmp_path: Path) -> None:
    panel = config(judging={"panel": [{"template": "world/judge"}]})
    round_ = Round(panel, tmp_path, STEPS, given=ScriptedEngine())
    with pytest.raises(ValueError, match="2 stages"):
        round_.stage("judgments")
    assert len({round_.stage("judgments", judge).path for judge in round_.roles.judges}) == 2


def test_what_a_closed_engine_was_asked_is_booked(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine()
    engine.usage = Usage(requests=7)
    monkeypatch.setattr("sao.execution.session.open_engine", lambda *_: engine)
    session = Session()
    session.engine(Role(name="policy", engine=config().engine, model="m"))
    session.close()
    assert [spent.requests for spent in session.spent()] == [7]
    assert session.spent() == []
