"""A step of one's own: it runs, resumes, drops, and shows in the funnel and in the status file."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sao.config import Config, PairsConfig, make_config
from sao.engines.scripted import ScriptedEngine
from sao.errors import ConfigError, DropError, StoreError
from sao.execution.status import read_status
from sao.execution.step import Step, Work
from sao.method import run, wanted
from sao.pipeline.reader import Reader
from sao.pipeline.rounds import Round
from sao.pipeline.steps import STEPS
from sao.records import Drop, Response, make_id
from sao.results.base import StageCounts
from support.errors import raises


def loud(work: Work[Round]) -> Iterator[Response | Drop]:
    for answer in work.read("responses", Response):
        loud_id = make_id(work.key, answer.id)
        if answer.row % 5 == 0:
            yield Drop(row=answer.row, stage="loud", record_id=loud_id, reason="whispered", text=answer.text)
        else:
            yield replace(answer, id=loud_id, text=answer.text.upper())


LOUD = Step(name="loud", record=Response, reads=("responses",), settings=lambda run, _: {"by": 1}, make=loud)


def config() -> Config:
    personas = {"source": "builtin:world", "n": 20, "held_out": 0}
    return make_config({"engine": {"name": "scripted"}, "personas": personas})


def finish(root: Path, step: Step[Round] = LOUD) -> Reader:
    summary = run(config(), root, until="loud", steps=(*STEPS, step), engine=ScriptedEngine())
    assert {row.stage: (row.records, row.dropped) for row in summary.funnel}["loud"] == (32, 8)
    return Reader(Round(config(), root, (*STEPS, step), given=ScriptedEngine()))


def test_a_step_of_ones_own(tmp_path: Path) -> None:
    found = finish(tmp_path)
    answers = {answer.row: answer.text for answer in found.stage("responses").records(Response)}
    assert all(answer.text == answers[answer.row].upper() for answer in found.stage("loud").records(Response))
    assert found.stage("loud").counts.reasons == {"whispered": 8}
    assert {drop.text for drop in found.stage("loud").drops()} <= set(answers.values())
    assert read_status(tmp_path).state == "finished"
    assert not list(tmp_path.glob("round-1/judgments-*"))  # nothing that it does not need


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    seen: list[int] = []

    def dying(work: Work[Round]) -> Iterator[Response | Drop]:
        for record in loud(work):
            seen.append(record.row)
            if len(seen) == 30:
                raise KeyboardInterrupt
            yield record

    with pytest.raises(KeyboardInterrupt):
        run(
            config(),
            tmp_path,
            until="loud",
            steps=(*STEPS, replace(LOUD, make=dying)),
            engine=ScriptedEngine(),
        )
    status = read_status(tmp_path)
    assert (status.state, status.step, status.planned) == ("stopped", "loud", None)
    whole = finish(tmp_path / "whole").stage("loud").path
    assert finish(tmp_path).stage("loud").path.name == whole.name
    for name in ("records.jsonl", "drops.jsonl", "stage.json"):
        assert (tmp_path / "round-1" / whole.name / name).read_bytes() == (whole / name).read_bytes()


def test_too_many_drops_end_it(tmp_path: Path) -> None:
    def hopeless(work: Work[Round]) -> Iterator[Response | Drop]:
        for answer in work.read("responses", Response):
            yield Drop(
                row=answer.row, stage="loud", record_id=make_id(work.key, answer.id), reason="no voice"
            )

    with raises(DropError, key="max_drop_share", match="no voice"):
        finish(tmp_path, replace(LOUD, make=hopeless))
    status = read_status(tmp_path)
    assert (status.state, "no voice" in str(status.error)) == ("failed", True)


def test_its_settings_and_its_revision_name_its_folder(tmp_path: Path) -> None:
    def path(step: Step[Round]) -> Path:
        return Round(config(), tmp_path, (*STEPS, step), given=ScriptedEngine()).stage("loud").path

    assert path(LOUD) == path(LOUD)
    other = (replace(LOUD, settings=lambda run, _: {"by": 2}), replace(LOUD, revision=2))
    assert len({path(LOUD), *map(path, other)}) == 3


@pytest.mark.parametrize("until", ["respond", "judge", "pairs", "comparisons"])
def test_a_step_that_the_recipe_does_not_have(tmp_path: Path, until: str) -> None:
    """Pairs are given, and nobody is held out: only prompts are left, and training."""
    given = config().model_copy(update={"pairs": PairsConfig(source="pairs.jsonl")})
    round_ = Round(given, tmp_path, STEPS, given=ScriptedEngine())
    with raises(ConfigError, key="until", match=r"this recipe has no step \w+; it has .*train"):
        wanted(round_, until)
    assert wanted(round_, "prompts")[-1] == "filtered"


def test_the_revision_of_the_personas_reaches_their_drafts(tmp_path: Path) -> None:
    people = {"source": "self", "n": 6, "held_out": 0, "writing": {"traits": "world"}}
    own = make_config({"engine": {"name": "scripted"}, "personas": people})
    engine = ScriptedEngine()
    for revision in (1, 1, 2):
        steps = [replace(step, revision=revision) if step.name == "personas" else step for step in STEPS]
        run(own, tmp_path, until="personas", steps=steps, engine=engine)
    assert len(list(tmp_path.glob("round-1/drafts-*"))) == 2
    assert len(list(tmp_path.glob("round-1/personas-*"))) == 2


def named(name: str, *reads: str, **more: Any) -> Step[Round]:
    return Step(name=name, record=Response, reads=reads, make=lambda work: (), **more)


@pytest.mark.parametrize(
    ("steps", "key", "match"),
    [
        ((*STEPS, named("pairs")), "steps", "two are called pairs"),
        (
            (*STEPS, named("loud", "filter")),
            "reads",
            r"step loud: it reads filter, .*Did you mean filtered\?",
        ),
        ((*STEPS, named("loud", "later"), named("later")), "reads", "later, which comes later"),
        (
            tuple(s for s in STEPS if s.name != "filtered"),
            "reads",
            "step checkable: it reads filtered, which is",
        ),
    ],
)
def test_a_table_that_does_not_hold_together(
    tmp_path: Path, steps: tuple[Step[Round], ...], key: str, match: str
) -> None:
    with raises(ConfigError, key=key, match=match):
        run(config(), tmp_path, steps=steps, engine=ScriptedEngine())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", range(1, len(STEPS) + 1))
def test_a_table_may_end_anywhere(tmp_path: Path, number: int) -> None:
    """STEPS[:5] has no filter of answers, no pairs and no training."""
    table = STEPS[:number]
    found = Round(config(), tmp_path, table, given=ScriptedEngine())
    last = [step.name for step in table if found.has(step.name) and step.name != "train"][-1]
    summary = run(config(), tmp_path, until=last, steps=table, engine=ScriptedEngine())
    assert set(summary.paths) >= {"run"}
    with raises(ConfigError, key="steps", match=r"no step comparison .*there are personas"):
        found.stage("comparison")


def test_what_a_step_reads_it_must_name(tmp_path: Path) -> None:
    """Else its records would stay when what it read is another."""
    unnamed = replace(LOUD, reads=("filtered",))
    with raises(ConfigError, key="reads", match=r"step loud: it reads responses, but .*Name it in reads"):
        finish(tmp_path, unnamed)


def test_a_product_of_which_a_part_is_gone_is_built_again(tmp_path: Path) -> None:
    built: list[str] = []

    def build(work: Work[Round]) -> None:
        folder = work.stage.path / "thing"
        folder.mkdir(exist_ok=True)
        (folder / "part").write_text("")
        built.append(work.stage.name)
        work.stage.finish(StageCounts(stage="thing", records=0, dropped=0, reasons={}))

    thing = named("thing", build=build, product="thing", is_whole=lambda path: (path / "part").is_file())
    for number in (1, 1, 2):
        if number == 2:
            next(tmp_path.glob("round-1/thing-*/thing/part")).unlink()
        run(config(), tmp_path, until="thing", steps=(*STEPS, thing), engine=ScriptedEngine())
        assert len(built) == number


def test_two_records_in_one_row_are_an_error(tmp_path: Path) -> None:
    def doubled(work: Work[Round]) -> Iterator[Response | Drop]:
        for answer in work.read("responses", Response):
            yield replace(answer, row=answer.row // 2, id=make_id(work.key, answer.id))

    with pytest.raises(OSError, match="two records of one step need two rows"):
        run(
            config(),
            tmp_path,
            until="loud",
            steps=(*STEPS, replace(LOUD, make=doubled)),
            engine=ScriptedEngine(),
        )


@pytest.mark.parametrize("id_", ["answer-7", "7", "f" * 17])
def test_an_id_that_is_none(tmp_path: Path, id_: str) -> None:
    def named(work: Work[Round]) -> Iterator[Response | Drop]:
        for answer in work.read("responses", Response):
            yield replace(answer, id=id_)

    with raises(StoreError, key="id", match=rf"{id_}.*make_id"):
        finish(tmp_path, replace(LOUD, make=named))


def test_only_what_is_needed_runs() -> None:
    round_ = Round(config(), Path("x"), (*STEPS, LOUD), given=ScriptedEngine())
    assert wanted(round_, "loud") == ["personas", "prompts", "filtered", "responses", "loud"]
    assert wanted(round_, "judge") == ["personas", "prompts", "filtered", "responses", "judgments"]
    assert wanted(round_, "eval")[-2:] == ["train", "loud"]
    with raises(ConfigError, key="until"):
        wanted(round_, "lout")
