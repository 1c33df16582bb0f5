"""Records that do not fit together raise with file and line; nothing is ever joined to nothing without a
word."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sao.analysis.audit import audit
from sao.config import Config, make_config
from sao.engines.scripted import ScriptedEngine
from sao.errors import StoreError
from sao.method import run
from sao.pipeline.folder import reader
from sao.pipeline.reader import Groups, Reader
from sao.records import Drop, Prompt, Response
from sao.sharing.export import export
from sao.store.stage import Stage
from support.errors import raises


def config() -> Config:
    return make_config(
        {
            "engine": {"name": "scripted"},
            "personas": {"source": "builtin:world", "n": 12, "held_out": 3},
            "filters": {"duplicates": "none"},
        }
    )


def finished(root: Path) -> Reader:
    run(config(), root, until="pairs", engine=ScriptedEngine())
    return reader(config(), root, ScriptedEngine())


def edit(found: Reader, step: str, change: Callable[[list[str]], list[str]]) -> str:
    path = found.stage(step).path / "records.jsonl"
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    return f"{found.stage(step).path.name}/records.jsonl"


def without(number: int) -> Callable[[list[str]], list[str]]:
    return lambda lines: [line for i, line in enumerate(lines) if i != number]


def swapped(lines: list[str]) -> list[str]:
    return [lines[1], lines[0], *lines[2:]]


def of_nobody(lines: list[str]) -> list[str]:
    return [lines[0], json.dumps({**json.loads(lines[1]), "prompt_id": "0" * 16}) + "\n", *lines[2:]]


READ: dict[str, Callable[[Reader], object]] = {
    "responses": lambda found: list(found.answered()),
    "judgments": lambda found: list(found.judged()),
    "pairs": lambda found: list(found.labelled()),
}


@pytest.mark.parametrize("step", READ)
@pytest.mark.parametrize("number", [0, 5, -1])
def test_a_missing_row(tmp_path: Path, step: str, number: int) -> None:
    found = finished(tmp_path)
    count = len((found.stage(step).path / "records.jsonl").read_text().splitlines())
    place = edit(found, step, without(number % count))
    with raises(StoreError, key="records.jsonl", match=rf"{place}, line .*not \d+ (together|as its).*Delete"):
        READ[step](found)


@pytest.mark.parametrize("step", READ)
def test_another_order(tmp_path: Path, step: str) -> None:
    found = finished(tmp_path)
    place = edit(found, step, swapped)
    with raises(StoreError, key="records.jsonl", match=rf"{place}, line \d+"):
        READ[step](found)


@pytest.mark.parametrize("step", READ)
def test_an_orphan(tmp_path: Path, step: str) -> None:
    found = finished(tmp_path)
    place = edit(found, step, of_nobody)
    with raises(
        StoreError, key="records.jsonl", match=rf"{place}, line 2: prompt 0{{16}} is not among those"
    ):
        READ[step](found)


def test_a_prompt_that_is_gone(tmp_path: Path) -> None:
    found = finished(tmp_path)
    edit(found, "filtered", lambda lines: lines[2:])
    with raises(
        StoreError,
        key="records.jsonl",
        match=r"responses-\w+/records\.jsonl, line 1: prompt \w+",
    ):
        list(found.answered())


@pytest.mark.parametrize("step", ["personas", "prompts", "filtered", "responses", "judgments", "pairs"])
def test_whoever_reads_to_the_end_misses_the_last_row(tmp_path: Path, step: str) -> None:
    found = finished(tmp_path)
    place = edit(found, step, lambda lines: lines[:-1])
    kind = found.round.table[step].record
    with raises(StoreError, key="records.jsonl", match=rf"{place}, line \d+: .* not \d+ as its.*Delete"):
        list(found.stage(step).records(kind))


def test_a_prompt_that_is_gone_before_the_answers(tmp_path: Path) -> None:
    """The next step does not make do with what is left."""
    run(config(), tmp_path, until="prompts", engine=ScriptedEngine())
    place = edit(reader(config(), tmp_path, ScriptedEngine()), "filtered", without(3))
    with raises(StoreError, key="records.jsonl", match=place):
        run(config(), tmp_path, until="respond", engine=ScriptedEngine())


def drop(row: int) -> str:
    return json.dumps({"row": row, "stage": "x", "record_id": "0" * 16, "reason": "y"}) + "\n"


def response(row: int) -> Response:
    return Response(
        id=f"{row:016x}",
        row=row,
        prompt_id=f"p{row}",
        index=0,
        text="t",
        token_ids=None,
        finish_reason="stop",
    )


@pytest.mark.parametrize(("lost", "asked"), [((1, 2, 9999), (0, 1, 2)), ((1,), (0, 2)), ((1, 2), (0, 2))])
def test_a_drop_of_nobody(tmp_path: Path, lost: tuple[int, ...], asked: tuple[int, ...]) -> None:
    """Drops that are left over, or that lie between the prompts that are asked for."""
    stage = Stage(tmp_path, "responses", {}).open()
    with stage.writer() as out:
        for row in {0, 1, 2} - set(lost):
            out.write(response(row))
        for row in lost:
            out.write(Drop(row=row, stage="responses", record_id=f"{row:016x}", reason="empty"))
    stage.seal(Response)
    groups = Groups(stage, Response, 1)
    with raises(
        StoreError, key="drops.jsonl", match=r"drops\.jsonl, line \d: row \d+ is out of order, or of"
    ):
        for index in asked:
            groups.take(Prompt(id=f"p{index}", row=2 * index, persona_id="", text=""), 1)
        groups.end()


@pytest.mark.parametrize("change", [lambda lines: lines[:-1], lambda lines: [*lines, drop(9999)]])
def test_the_drops_are_counted_too(tmp_path: Path, change: Callable[[list[str]], list[str]]) -> None:
    found = finished(tmp_path)
    path = found.stage("pairs").path / "drops.jsonl"
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    with pytest.raises(StoreError, match=r"drops\.jsonl|not \d+ together"):
        list(found.labelled())


def test_a_persona_that_is_gone(tmp_path: Path) -> None:
    found = finished(tmp_path)
    place = edit(found, "personas", without(4))
    with raises(StoreError, key="records.jsonl", match=rf"{place}: no persona \w+"):
        list(found.written())


def test_a_pair_of_answers_that_are_not_there(tmp_path: Path) -> None:
    found = finished(tmp_path)
    edit(found, "pairs", lambda lines: [
        json.dumps({**json.loads(lines[0]), "chosen_id": "f" * 16}) + "\n", *lines[1:]
    ])  # fmt: skip
    with raises(
        StoreError, key="records.jsonl", match=r"pairs-\w+/records\.jsonl: pair \w+ names answer f{16}"
    ):
        list(found.labelled())


def test_whoever_reads_is_told(tmp_path: Path) -> None:
    found = finished(tmp_path)
    edit(found, "judgments", without(3))
    for read in (audit, lambda run: export(run, tmp_path / "out")):
        with raises(StoreError, key="records.jsonl", match="judgments-"):
            read(found)
