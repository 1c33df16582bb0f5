"""`sao import`: a preference data set as a run that is audited, exported, labelled and trained on."""

import json
from pathlib import Path
from typing import Any

import pytest

from sao.analysis.audit import audit
from sao.cli import main
from sao.config import load_recipe, make_config
from sao.engines.scripted import ScriptedEngine
from sao.errors import ConfigError, DataError, StoreError
from sao.method import run as run_pipeline
from sao.pipeline.folder import reader, recorded
from sao.pipeline.reader import Reader
from sao.records import Judgment, PreferencePair
from sao.sharing.import_pairs import import_pairs
from sao.stages.rows import pair_row
from sao.store.manifest import read_manifest
from support.checks import known
from support.errors import raises

N = 30


def pairs(path: Path, n: int = N, system: str | None = None) -> Path:
    rows: list[dict[str, Any]] = []
    for i in range(n):
        opening = [{"role": "system", "content": system.format(i)}] if system else []
        earlier = (
            [{"role": "user", "content": f"hi {i}"}, {"role": "assistant", "content": "hello"}]
            if i % 3 == 0
            else []
        )
        rows.append({
            "prompt": [*opening, *earlier, {"role": "user", "content": f"question {i}"}],
            "chosen": [{"role": "assistant", "content": f"good answer {i}"}],
            "rejected": [{"role": "assistant", "content": f"bad {i}"}],
        })  # fmt: skip
    rows.insert(3, {"prompt": "x", "chosen": "same", "rejected": "same"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def imported(tmp_path: Path, held_out: int = 0, **changes: Any) -> Reader:
    config = load_recipe("default", {"pairs.source": str(pairs(tmp_path / "p.jsonl", **changes))})
    done = import_pairs(config, tmp_path / "run", held_out)
    assert (done.pairs, done.held_out, done.dropped) == (N - held_out, held_out, 1)
    assert done.reasons == {"chosen equals rejected": 1}
    return reader(make_config(read_manifest(tmp_path / "run").config), tmp_path / "run")


def test_a_seed_of_the_training_counts_beside_the_runs(tmp_path: Path) -> None:
    run = imported(tmp_path)
    seeded = reader(
        run.config.model_copy(update={"train": run.config.train.model_copy(update={"seed": 4})}), run.root
    )
    assert seeded.stage("train").settings == {**run.stage("train").settings, "seed": 4}
    assert seeded.stage("train").fingerprint != run.stage("train").fingerprint
    assert seeded.stage("pairs").fingerprint == run.stage("pairs").fingerprint


def test_prompts_answers_and_labels_stand_in_the_run(tmp_path: Path) -> None:
    run = imported(tmp_path)
    found = list(run.judged())
    assert [prompt.text for prompt, _, _ in found] == [f"question {i}" for i in range(N)]
    assert found[3][0].earlier == ("hi 3", "hello")
    for i, (_, answers, judgments) in enumerate(found):
        assert [a.text for a in answers] == [f"good answer {i}", f"bad {i}"]
        (judgment,) = judgments
        assert judgment.winner_id == answers[0].id
    first = [j.verdict for j in run.round.stages("judgments")[0].records(Judgment)]
    assert 5 < first.count("first") < N - 5  # the label does not follow from the slot


def test_the_usual_commands_serve_it_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = pairs(tmp_path / "p.jsonl")
    out = str(tmp_path / "run")
    assert main(["import", str(source), "--out", out, "--pairs.licence", "cc-by-nc-4.0"]) == 0
    said = capsys.readouterr().out
    assert "30 pairs, 0 held-out prompts, 1 rows dropped (chosen equals rejected 1)" in said
    assert "NON-COMMERCIAL" in said
    assert main(["audit", out]) == 0
    assert main(["stats", out]) == 0
    assert main(["contamination", out, "--sets", f"{source}#prompt"]) == 0
    assert main(["export", out, "--out", str(tmp_path / "data"), "--test-share", "0"]) == 0
    # again: nothing to do
    assert main(["import", str(source), "--out", out, "--pairs.licence", "cc-by-nc-4.0"]) == 0
    capsys.readouterr()
    assert main(["pairs", f"{out}/recipe.yaml", "--out", out, "--engine.name", "scripted", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not summary["worked"]
    funnel = {row["stage"]: row for row in summary["funnel"]}
    assert funnel["prompts"]["reasons"] == {"chosen equals rejected": 1}
    assert funnel["pairs"]["records"] == N
    found = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert found["config"]["pairs"]["imported_from"] == "p.jsonl"
    assert found["licences"]["pairs"] == "cc-by-nc-4.0"


def test_the_run_is_read_without_its_source(tmp_path: Path) -> None:
    run = imported(tmp_path)
    (tmp_path / "p.jsonl").unlink()
    assert main(["audit", str(run.root)]) == 0
    assert main(["stats", str(run.root)]) == 0


def test_an_import_does_not_touch_another_run(tmp_path: Path) -> None:
    run_pipeline(load_recipe("default", {"engine.name": "scripted", "personas.n": "9",
    "personas.held_out": "1"}),
                 tmp_path / "own", until="pairs")  # fmt: skip
    before = (tmp_path / "own" / "manifest.json").read_bytes()
    config = load_recipe("default", {"pairs.source": str(pairs(tmp_path / "p.jsonl"))})
    with raises(StoreError, key="run folder"):
        import_pairs(config, tmp_path / "own")
    assert (tmp_path / "own" / "manifest.json").read_bytes() == before
    import_pairs(config, tmp_path / "theirs")
    with raises(StoreError, key="run folder", match="30 prompts and 0 .*not the 25 and 5"):
        import_pairs(config, tmp_path / "theirs", held_out=5)
    with raises(StoreError, key="run folder"):
        run_pipeline(
            load_recipe("default", {"engine.name": "scripted"}), tmp_path / "theirs", until="prompts"
        )


def test_given_labels_belong_to_imports() -> None:
    with raises(ConfigError, key="recipe", match="runs that `sao import` made"):
        load_recipe("default", {"judging.method": "given"})


def test_other_lengths_for_the_evaluation_leave_the_answers_as_they_are(tmp_path: Path) -> None:
    run = imported(tmp_path, held_out=5)
    recipe = str(tmp_path / "run" / "recipe.yaml")
    engine = ScriptedEngine()
    summary = run_pipeline(
        load_recipe(recipe, {"responses.max_tokens": "64"}), run.root, until="pairs", engine=engine
    )
    assert engine.calls == 0
    assert known(summary.kept).share == 1.0
    # Another judge is another judge, and each model's verdicts are its own.
    asked = {"judging.method": "logprob", "judging.orders": "both"}
    for name in ("one", "two"):
        engine = ScriptedEngine(identity=name)
        run_pipeline(load_recipe(recipe, asked), run.root, until="pairs", engine=engine)
        assert engine.calls == 2 * (N - 5)


def test_labels_come_back_as_pairs(tmp_path: Path) -> None:
    run = imported(tmp_path)
    main(
        [
            "pairs",
            str(tmp_path / "run" / "recipe.yaml"),
            "--out",
            str(run.root),
            "--engine.name",
            "scripted",
            "--quiet",
        ]
    )
    labelled = list(run.labelled())
    assert len(labelled) == N
    assert all(
        chosen.text.startswith("good") and rejected.text.startswith("bad")
        for _, _, chosen, rejected in labelled
    )
    assert all(isinstance(pair, PreferencePair) for _, pair, _, _ in labelled)
    found = audit(run)
    assert found.judge.verdicts == N


def test_system_messages_are_kept(tmp_path: Path) -> None:
    same = imported(tmp_path, system="be kind")
    assert same.config.responses.system == "be kind"
    assert next(same.asked(False)).text == "question 0"
    (tmp_path / "b").mkdir()
    several = imported(tmp_path / "b", system="be {}")
    assert several.config.responses.system is None
    texts = [prompt.conversation for prompt in several.asked(False)]
    assert "be 1\n\nquestion 1" in texts[1]
    assert "be 0\n\nhi 0" in texts[0]


def test_held_out_questions_are_not_trained_on(tmp_path: Path) -> None:
    run = imported(tmp_path, held_out=5)
    training, held_out = [p.conversation for p in run.asked(False)], [p.conversation for p in run.asked(True)]
    assert (len(training), len(held_out)) == (N - 5, 5)
    assert not set(training) & set(held_out)
    assert held_out != [f"question {i}" for i in range(N - 5, N)]  # drawn by hash, not the last ones
    with raises(DataError, key="--held-out"):
        import_pairs(load_recipe("default", {"pairs.source": str(tmp_path / "p.jsonl")}), tmp_path / "x", N)


def test_a_question_that_stands_in_several_pairs_is_held_out_as_a_whole(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i % 8}?", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(40)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_recipe("default", {"pairs.source": str(tmp_path / "p.jsonl")})
    done = import_pairs(config, tmp_path / "run", held_out=3)
    assert (done.pairs, done.held_out, done.dropped) == (25, 3, 12)
    assert done.reasons == {"repeats a held-out question": 12}
    run = recorded(tmp_path / "run")
    asked = [p.text for p in run.asked(True)]
    assert len(set(asked)) == 3
    assert not set(asked) & {p.text for p in run.asked(False)}


def test_an_import_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = imported(tmp_path)
    from sao.sharing import import_pairs as module

    calls = 0

    def dying(*args: Any) -> int:
        nonlocal calls
        calls += 1
        if calls > 12:
            raise KeyboardInterrupt
        return pair_row(*args)

    monkeypatch.setattr(module, "pair_row", dying)
    config = load_recipe("default", {"pairs.source": str(tmp_path / "p.jsonl")})
    with pytest.raises(KeyboardInterrupt):
        import_pairs(config, tmp_path / "killed")
    monkeypatch.setattr(module, "pair_row", pair_row)
    import_pairs(config, tmp_path / "killed")
    files = [
        {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*.jsonl")}
        for root in (whole.root, tmp_path / "killed")
    ]
    assert files[0] == files[1]


@pytest.mark.slow
def test_an_imported_set_is_trained_on_and_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = {"personas.n": "60", "personas.held_out": "5", "engine.threads": "1", "pairs.keep": "all"}
    run_pipeline(load_recipe("demo", demo), tmp_path / "demo", until="pairs")
    assert main(["export", str(tmp_path / "demo"), "--out", str(tmp_path / "data"), "--test-share", "0"]) == 0
    out = str(tmp_path / "run")
    assert main(["import", str(tmp_path / "data"), "--recipe", "demo", "--held-out", "4", "--out", out]) == 0
    assert main(["run", f"{out}/recipe.yaml", "--out", out, "--engine.threads", "1", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["heldout"]["n"] == 4
    assert {row["stage"]: row["records"] for row in summary["funnel"]}["train"] > 30
