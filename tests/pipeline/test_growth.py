"""A run grows by raising personas.n or personas.held_out: what is there stays, byte for byte."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sao.config import Config, load_recipe, make_config
from sao.engines.scripted import ScriptedEngine
from sao.errors import StoreError
from sao.execution.step import Work
from sao.method import run
from sao.pipeline.folder import reader, recorded
from sao.pipeline.rounds import Round
from sao.pipeline.steps import STEPS
from sao.records import Persona, Prompt, Response
from sao.results.base import StageCounts
from sao.sharing.import_pairs import import_pairs
from sao.stages.rows import index_of, is_held_out
from sao.store.files import write_atomic
from support.errors import raises
from support.run_files import files

KINDS = ("personas", "prompts", "filtered", "responses", "judgments")


def config(n: int, held_out: int = 8, **sections: Any) -> Config:
    personas = {"source": "builtin:world", "n": n, "held_out": held_out, **sections.pop("personas", {})}
    return make_config({"engine": {"name": "scripted"}, "personas": personas, **sections})


def lines(root: Path, step: str, config: Config) -> dict[int, str]:
    """The records of a step by row, as they are on disk; of judgments the first judge's."""
    path = reader(config, root, ScriptedEngine()).stage(step).path / "records.jsonl"
    return {json.loads(line)["row"]: line for line in path.read_text().splitlines()}


def test_from_200_to_400(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    run(config(200), tmp_path, until="pairs", engine=engine)
    before = {kind: lines(tmp_path, kind, config(200)) for kind in KINDS}
    calls = engine.calls
    run(config(400), tmp_path, until="pairs", engine=engine)
    for kind in KINDS:
        after = lines(tmp_path, kind, config(400))
        assert before[kind].items() <= after.items()
        assert len(after) > 1.8 * len(before[kind]) - 20
    assert engine.calls - calls == calls - 8  # as many again, but for the held-out prompts
    assert (
        len(list(tmp_path.glob("round-1/responses-*"))) == len(list(tmp_path.glob("round-1/prompts-*"))) == 1
    )
    assert len(list(tmp_path.glob("round-1/pairs-*"))) == 2  # calibration looks at all verdicts
    assert recorded(tmp_path).config.personas.n == 400
    assert json.loads((tmp_path / "manifest.json").read_text())["sizes"] == [[200, 8], [400, 8]]
    again = run(config(400), tmp_path, until="pairs", engine=engine)
    assert not again.worked


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"filters": {"duplicates": "none"}},
        {"personas": {"source": "none"}},
        {"personas": {"source": "self", "writing": {"traits": "world"}}},
        {"personas": {"source": "builtin:general"}},
    ],
)
def test_both_draws_grow_and_stay_apart(tmp_path: Path, sections: dict[str, Any]) -> None:
    few, more = config(30, 6, **sections), config(45, 10, **sections)
    run(few, tmp_path / "grown", until="respond", engine=ScriptedEngine())
    before = {kind: lines(tmp_path / "grown", kind, few) for kind in KINDS[:-1]}
    run(more, tmp_path / "grown", until="respond", engine=ScriptedEngine())
    for kind in KINDS[:-1]:
        assert before[kind].items() <= lines(tmp_path / "grown", kind, more).items()
    run(more, tmp_path / "at once", until="respond", engine=ScriptedEngine())
    for kind in ("personas", "prompts"):  # which prompts are kept may depend on what was kept before
        assert lines(tmp_path / "grown", kind, more) == lines(tmp_path / "at once", kind, more)
    people = list(reader(more, tmp_path / "grown", ScriptedEngine()).stage("personas").records(Persona))
    assert sorted(index_of(p.row) for p in people if not is_held_out(p.row)) == list(range(45))
    assert sorted(index_of(p.row) for p in people if is_held_out(p.row)) == list(range(10))
    texts = [p.text for p in people if p.text]
    assert len(set(texts)) == len(texts)


def test_a_prompt_that_was_kept_stays_when_a_later_one_repeats_it(tmp_path: Path) -> None:
    """All prompts but one are the same: the first of them stays, whoever comes later."""
    engine = ScriptedEngine(reply=lambda messages, seed, sampling: "Prompt: always this one, again")
    sizes = [(5, 2), (9, 4)]
    kept = []
    for n, held_out in sizes:
        grown = config(n, held_out)
        run(grown, tmp_path, until="prompts", engine=engine)
        kept.append([p.row for p in reader(grown, tmp_path, engine).stage("filtered").records(Prompt)])
    assert kept == [[0], [0]]


def test_a_kill_while_it_grows(tmp_path: Path) -> None:
    few, more = config(20), config(60)
    run(more, tmp_path / "whole", until="judge", engine=ScriptedEngine())
    run(few, tmp_path / "killed", until="judge", engine=ScriptedEngine())

    for deaths in range(1, 8):
        asked = 0

        def progress(step: str, done: int, total: int, at: int = 13 * deaths) -> None:
            nonlocal asked
            asked += 1
            if asked == at:
                raise KeyboardInterrupt

        try:
            run(more, tmp_path / "killed", until="judge", engine=ScriptedEngine(), progress=progress)
        except KeyboardInterrupt:
            continue
    run(more, tmp_path / "killed", until="judge", engine=ScriptedEngine())
    for kind in ("personas", "prompts", "responses", "judgments"):
        assert lines(tmp_path / "killed", kind, more) == lines(tmp_path / "whole", kind, more)
    answers = list(reader(more, tmp_path / "killed", ScriptedEngine()).answered())
    assert all(isinstance(answer, Response) for _, group in answers for answer in group)


def with_a_model_made_up(work: Work[Round]) -> None:
    """In place of training: a folder that counts as a model."""
    for name in ("config.json", "model.safetensors"):
        write_atomic(work.run.model_dir / name, "{}")
    work.stage.finish(StageCounts(stage="train", records=0, dropped=0, reasons={}))


UNTRAINED = tuple(
    replace(step, build=with_a_model_made_up) if step.name == "train" else step for step in STEPS
)


@pytest.mark.parametrize("step", ["personas", "prompts", "filtered", "responses", "heldout_base"])
def test_a_kill_while_it_grows_forgets_no_size(tmp_path: Path, step: str) -> None:
    """Which prompts are kept hangs on the order in which they came, and all that follows hangs on that."""
    filters = {"filters": {"duplicates": "near"}}
    few, more = config(40, 12, **filters), config(90, 20, **filters)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for root in (whole, killed):
        run(few, root, steps=UNTRAINED, engine=ScriptedEngine())

    def stop(what: str, done: int, total: int) -> None:
        if what == step and done > 50 * (step != "heldout_base"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(more, killed, steps=UNTRAINED, engine=ScriptedEngine(), progress=stop)
    for root in (whole, killed):
        run(more, root, steps=UNTRAINED, engine=ScriptedEngine())
        assert json.loads((root / "manifest.json").read_text())["sizes"] == [[40, 12], [90, 20]]
    assert lines(killed, "comparisons", more)
    assert files(killed) == files(whole)


def test_it_only_grows(tmp_path: Path) -> None:
    run(config(30, 6), tmp_path, until="prompts", engine=ScriptedEngine())
    before = (tmp_path / "manifest.json").read_bytes()
    for n, held_out, said in ((29, 6, r"personas\.n: 30 → 29"), (40, 5, r"personas\.held_out: 6 → 5")):
        with raises(StoreError, key="run folder", match=said):
            run(config(n, held_out), tmp_path, until="prompts", engine=ScriptedEngine())
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_an_imported_run_does_not_grow(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(12)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = import_pairs(
        load_recipe("default", {"pairs.source": str(tmp_path / "p.jsonl")}), tmp_path / "run", 2
    )
    more = load_recipe(done.recipe, {"engine.name": "scripted", "personas.n": "50"})
    with raises(StoreError, key="run folder", match="10 prompts and 2 .*not the 50 and 2"):
        run(more, tmp_path / "run", until="pairs", engine=ScriptedEngine())
