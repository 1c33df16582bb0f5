"""Exports: the rows of each tool's form, what is train and what is test, files that arrive whole, and the
data set's card."""

import hashlib
import json
import math
import os
import resource
import signal
import socket
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sao.analysis.audit import audit
from sao.config import make_config
from sao.data.preferences import TextPair, pair_of, read_pairs
from sao.data.readers import read_rows
from sao.data.similarity import normalise
from sao.engines.scripted import ScriptedEngine
from sao.errors import DataError, StoreError
from sao.method import run
from sao.pipeline.folder import reader
from sao.pipeline.reader import Reader
from sao.records import Judgment, Persona, PreferencePair, Prompt, Response, make_id
from sao.sharing.dataset_card import Exported, data_card
from sao.sharing.export import export, joined, paired, write_rows
from sao.sharing.formats import COLUMNS, FORMS, VIEWS, Example, rows_of, standings
from sao.sharing.sinks import UNFINISHED, arriving
from sao.sharing.split import LARGE, split_of
from sao.stages.personas import non_commercial
from sao.store.manifest import Manifest, read_manifest
from sao.templates import load_template
from sao.training.cards import model_card, push_dataset, push_model
from support.checks import known
from support.errors import raises
from support.run_files import json_rows

TURNS = ("Name a bird.", "A finch.")


def prompt(row: int, text: str = "", persona: str | None = None, earlier: tuple[str, ...] = ()) -> Prompt:
    name = make_id("persona", row) if persona is None else persona
    return Prompt(
        id=make_id("prompt", row), row=row, persona_id=name, text=text or f"Question {row}?", earlier=earlier
    )


def example(row: int = 0, margins: dict[tuple[int, int], float | None] | None = None, **more: Any) -> Example:
    """A prompt whose answers are "answer 0", "answer 1", …, with a pair (chosen, rejected) and two verdicts
    for each margin."""
    asked = prompt(row, **more)
    margins = {(0, 1): 2.0} if margins is None else margins
    answers = {
        i: Response(id=make_id(asked.id, i), row=i, prompt_id=asked.id, index=i, text=f"answer {i}",
        token_ids=None,
                    finish_reason="stop")
        for two in margins for i in two
    }  # fmt: skip
    pairs, judgments = [], []
    for number, ((a, b), margin) in enumerate(margins.items()):
        good, bad = answers[a], answers[b]
        p = None if margin is None else 1 / (1 + math.exp(-margin))
        pairs.append((
            PreferencePair(id=make_id(asked.id, a, b), row=number, prompt_id=asked.id, chosen_id=good.id,
            rejected_id=bad.id,
                           p_chosen=p, margin=margin), good, bad,
        ))  # fmt: skip
        for first, second, verdict, chance in ((good, bad, "first", 0.75), (bad, good, "second", 0.25)):
            judgments.append(
                Judgment(id=make_id(first.id, second.id), row=0, prompt_id=asked.id, first_id=first.id,
                second_id=second.id,
                         judge="self", verdict=verdict, p_first=chance, verdict_prob=1.0)  # type: ignore[arg-type]
            )  # fmt: skip
    return Example(prompt=asked, persona=f"person {row}", pairs=pairs, judgments=judgments)


def tool_columns(form: str, view: str, which: int = 0) -> dict[str, Any]:
    """The columns of a row that the tool reads."""
    row = rows_of(example(earlier=TURNS, text="Why it?"), form, view, "Be brief.")[which]
    names = ("prompt", "chosen", "rejected", "completion", "label", "messages", "conversations")
    return {name: value for name, value in row.items() if name in names}


# The forms. The messages are written out: they are what the tools' documents show.

SAID = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a bird."},
    {"role": "assistant", "content": "A finch."},
    {"role": "user", "content": "Why it?"},
]
GOOD, BAD = {"role": "assistant", "content": "answer 0"}, {"role": "assistant", "content": "answer 1"}
SHAREGPT = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "Name a bird."},
    {"from": "gpt", "value": "A finch."},
    {"from": "human", "value": "Why it?"},
]
GPT_GOOD, GPT_BAD = {"from": "gpt", "value": "answer 0"}, {"from": "gpt", "value": "answer 1"}


@pytest.mark.parametrize(
    ("form", "pairs", "kto", "sft"),
    [
        ("trl", {"prompt": SAID, "chosen": [GOOD], "rejected": [BAD]},
         {"prompt": SAID, "completion": [BAD], "label": False}, {"prompt": SAID, "completion": [GOOD]}),
        ("openrlhf", {"prompt": SAID, "chosen": [GOOD], "rejected": [BAD]},
         {"prompt": SAID, "completion": [BAD], "label": False}, {"prompt": SAID, "completion": [GOOD]}),
        ("simpo", {"prompt": "Why it?", "chosen": [*SAID, GOOD], "rejected": [*SAID, BAD]},
         {"prompt": "Why it?", "completion": [*SAID, BAD], "label": False}, {"prompt": "Why it?",
         "messages": [*SAID, GOOD]}),
        ("llamafactory", {"conversations": SHAREGPT, "chosen": GPT_GOOD, "rejected": GPT_BAD},
         {"conversations": [*SHAREGPT, GPT_BAD], "label": False}, {"conversations": [*SHAREGPT, GPT_GOOD]}),
        ("axolotl", {"messages": SAID, "chosen": GOOD, "rejected": BAD},
         {"completion": [*SAID, BAD], "label": False}, {"messages": [*SAID, GOOD]}),
    ],
)  # fmt: skip
def test_a_row_is_what_its_tool_reads(form: str, pairs: Any, kto: Any, sft: Any) -> None:
    assert tool_columns(form, "pairs") == pairs
    assert tool_columns(form, "kto", 1) == kto
    assert tool_columns(form, "kto", 0)["label"] is True
    assert tool_columns(form, "sft") == sft


@pytest.mark.parametrize("form", FORMS)
def test_exported_pairs_are_read_back(form: str) -> None:
    """By `sao train --pairs`: each form is one of those of sao.data.preferences."""
    made = example(earlier=TURNS, text="Why it?")
    (row,) = rows_of(made, form, "pairs", None)
    read = pair_of(row, 0)
    assert isinstance(read, TextPair)
    assert [message.content for message in read.messages] == [*TURNS, "Why it?"]
    ((_, good, bad),) = made.pairs
    assert (read.chosen, read.rejected) == (good.text, bad.text)


def test_axolotl_finds_an_answer_that_its_template_strips() -> None:
    spaced = example()
    ((pair, good, bad),) = spaced.pairs
    spaced = replace(spaced, pairs=[(pair, replace(good, text=" so\n"), bad)])
    assert rows_of(spaced, "axolotl", "pairs", None)[0]["chosen"]["content"] == "so"
    assert rows_of(spaced, "trl", "pairs", None)[0]["chosen"][0]["content"] == " so\n"


def test_a_pair_carries_ids_numbers_and_both_verdicts() -> None:
    given = example(7, {(0, 1): 2.0, (0, 2): 3.0})
    first, second = rows_of(given, "trl", "pairs", None)
    pair, good, bad = given.pairs[0]
    assert (first["id"], first["chosen_id"], first["rejected_id"]) == (pair.id, good.id, bad.id)
    assert (first["prompt_id"], first["persona_id"]) == (given.prompt.id, given.prompt.persona_id)
    assert (first["row"], first["persona"]) == (7, "person 7")
    assert (first["p_chosen"], first["margin"], first["margin_sd"]) == (
        pytest.approx(0.8808, abs=1e-4),
        2.0,
        None,
    )
    assert [(v["first_id"], v["verdict"], v["p_first"], v["judge"]) for v in first["verdicts"]] == [
        (good.id, "first", 0.75, "self"),
        (bad.id, "second", 0.25, "self"),
    ]
    assert {v["second_id"] for v in second["verdicts"]} == {good.id, given.pairs[1][2].id}


def test_an_answer_is_labelled_by_its_mean_margin_where_it_is_both_chosen_and_rejected() -> None:
    middle = example(0, {(0, 1): 1.0, (1, 2): 4.0, (3, 4): 2.0, (4, 5): 2.0})
    assert [(s.wins, s.losses, s.mean) for s in standings(middle)][:3] == [
        (1, 0, 1.0),
        (1, 1, 1.5),
        (0, 1, -4.0),
    ]
    rows = rows_of(middle, "trl", "kto", None)
    labels = {row["completion"][0]["content"]: row["label"] for row in rows}
    # Answer 4 lost to 3 by as much as it won over 5: it is neither good nor bad and has no row.
    assert labels == {
        "answer 0": True,
        "answer 1": True,
        "answer 2": False,
        "answer 3": True,
        "answer 5": False,
    }
    one = rows[1]
    assert (one["wins"], one["losses"], one["margin"], len(one["verdicts"])) == (1, 1, 1.5, 4)
    assert len({row["id"] for row in rows}) == 5


def test_a_judge_without_numbers_gives_votes() -> None:
    given = example(0, {(0, 1): None, (0, 2): None, (2, 1): None})
    rows = {row["completion"][0]["content"]: row for row in rows_of(given, "trl", "kto", None)}
    assert {text: row["label"] for text, row in rows.items()} == {"answer 0": True, "answer 1": False}
    assert rows["answer 0"]["margin"] is None


def test_sft_takes_the_answer_that_lost_to_none() -> None:
    # Answer 1 has the larger mean, since it beat a very bad one, but lost to answer 0.
    rows = rows_of(example(0, {(0, 1): 1.0, (1, 2): 9.0}), "trl", "sft", None)
    assert [row["completion"][0]["content"] for row in rows] == ["answer 0"]


def test_half_a_surrogate_pair_becomes_valid_text() -> None:
    given = example(0, text="Why \ud83d?")
    given = replace(given, persona="\udc00 and 😀")
    for form in FORMS:
        for row in rows_of(given, form, "pairs", None):
            json.dumps(row, ensure_ascii=False).encode()
            assert row["persona"] == "\ufffd and 😀"
            assert "Why \ufffd?" in json.dumps(row, ensure_ascii=False)


# Train and test.


def test_a_question_or_persona_is_never_on_both_sides() -> None:
    prompts = [
        prompt(i, text=("Why?", " why ", "WHY!!", "How?")[i % 4] if i < 40 else "") for i in range(4000)
    ]
    prompts += [replace(prompt(4000 + i), persona_id=make_id("persona", i)) for i in range(0, 4000, 7)]
    split = split_of(prompts, 0.2)
    train, test = ([p for p in prompts if split[p.row] == side] for side in (0, 1))
    assert not {normalise(p.text) for p in train} & {normalise(p.text) for p in test}
    assert not {p.persona_id for p in train} & {p.persona_id for p in test}
    assert len(test) / len(prompts) == pytest.approx(0.2, abs=0.03)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 9), st.sampled_from("abcdefgh"), st.lists(st.sampled_from("abcdefgh"), max_size=2)
        ),
        max_size=40,
    ),
    st.floats(0, 0.99),
)
def test_what_shares_a_turn_or_a_persona_goes_together(
    rows: list[tuple[int, str, list[str]]], share: float
) -> None:
    prompts = [
        prompt(i, text=text, persona=f"{who:016x}" if who else "",
        earlier=tuple(t for e in earlier for t in (e, "Yes.")))
        for i, (who, text, earlier) in enumerate(rows)
    ]  # fmt: skip
    split = split_of(prompts, share)
    keys: tuple[set[str], set[str]] = (set(), set())
    for p in prompts:
        keys[split[p.row]].update((p.text, *p.earlier[::2], *([p.persona_id] if p.persona_id else [])))
    assert not keys[0] & keys[1]


def test_a_pair_stays_where_it_is_when_more_are_made() -> None:
    few, many = split_of(map(prompt, range(500)), 0.3), split_of(map(prompt, range(1000)), 0.3)
    assert many[:500] == few
    assert sum(few) == pytest.approx(150, abs=30)


def test_a_large_group_is_for_training() -> None:
    asked = [prompt(i, text="Go on.") for i in range(LARGE + 1)]
    assert not any(sum(split_of(asked, share)) for share in (0.1, 0.9, 0.99))
    assert any(
        sum(split_of([replace(p, text=f"Go on {k}.") for p in asked[:LARGE]], 0.5)) == LARGE
        for k in range(20)
    )


def test_no_share_is_no_test_data() -> None:
    assert not any(split_of(map(prompt, range(100)), 0.0))
    assert split_of([], 0.5) == b""


# Files.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """A run of 90 prompts with three answers each."""
    root = tmp_path_factory.mktemp("run")
    other = tmp_path_factory.mktemp("templates") / "other-judge.txt"
    other.write_text("Judge with care.\n\n" + load_template("judge", ()))
    nothing = {"duplicates": "none", "refusals": False, "persona_text": False, "unfinished": False}
    recipe = {
        "engine": {"name": "scripted"}, "personas": {"source": "builtin:world", "n": 90, "held_out": 10},
        "filters": nothing,
        "responses": {"n": 3, "system": "Be brief."}, "pairs": {"min_p": 0.5},
        "judging": {"panel": [{"template": str(other), "weight": 0.5}]},
    }  # fmt: skip
    config = make_config(recipe)
    run(config, root, until="pairs", engine=ScriptedEngine())
    return reader(config, root, ScriptedEngine())


def read(folder: Path, split: str) -> list[dict[str, Any]]:
    if (folder / f"{split}.parquet").exists():
        found: list[dict[str, Any]] = pyarrow.parquet.read_table(folder / f"{split}.parquet").to_pylist()
        return found
    return json_rows(folder / f"{split}.jsonl")


def test_every_form_holds_the_same_rows(finished: Reader, tmp_path: Path) -> None:
    pairs = list(finished.labelled())
    answers = {r.id for _, _, *two in pairs for r in two}
    wanted = {"pairs": len(pairs), "kto": len(answers), "sft": len({p.id for p, *_ in pairs})}
    for view in VIEWS:
        seen = []
        for form in FORMS:
            done = export(finished, tmp_path / form / view, form, view, 0.2)
            assert done.train + done.test + done.left_out == wanted[view]
            rows = {split: read(tmp_path / form / view, split) for split in ("train", "test")}
            assert {split: len(found) for split, found in rows.items()} == {s: getattr(done, s) for s in rows}
            assert done.test > 0
            assert set(rows["train"][0]) <= set(COLUMNS)
            seen.append([(split, row["id"], row["verdicts"]) for split in rows for row in rows[split]])
            sides = [{(row["persona_id"], row["prompt_id"]) for row in rows[split]} for split in rows]
            assert not sides[0] & sides[1]
        assert all(found == seen[0] for found in seen)


def test_personas_and_the_panels_verdicts_come_along(finished: Reader, tmp_path: Path) -> None:
    export(finished, tmp_path, test_share=0.0)
    people = {p.id: p.text for p in finished.stage("personas").records(Persona)}
    rows = read(tmp_path, "train")
    assert {row["persona"] for row in rows} <= set(people.values())
    assert all(row["persona"] == people[row["persona_id"]] for row in rows)
    assert not (tmp_path / "test.parquet").exists()
    names = [judge.name for judge in finished.judges]
    assert len(names) == 2
    for row in rows:
        two = (row["chosen_id"], row["rejected_id"])
        orders = {(v["judge"], v["first_id"], v["second_id"]) for v in row["verdicts"]}
        assert orders == {(name, *order) for name in names for order in (two, two[::-1])}


def test_an_export_is_the_same_again_and_is_read_back(finished: Reader, tmp_path: Path) -> None:
    for form in ("trl", "simpo"):
        out = tmp_path / form
        export(finished, out, form, test_share=0.2)
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        export(finished, out, form, test_share=0.2)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        found = [pair for split in ("train", "test") for pair in read_pairs(str(out), split=split)]
        texts = {
            (p.messages[-1].content, p.chosen, p.rejected, p.margin) for p in found if isinstance(p, TextPair)
        }
        made = {(p.text, good.text, bad.text, pair.margin) for p, pair, good, bad in finished.labelled()}
        assert texts == made
        assert all(p.messages[0].content == "Be brief." for p in found if isinstance(p, TextPair))


def test_another_form_takes_the_place_of_an_export(finished: Reader, tmp_path: Path) -> None:
    export(finished, tmp_path, "axolotl", test_share=0.2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "README.md",
        "axolotl.yaml",
        "test.jsonl",
        "train.jsonl",
    ]
    export(finished, tmp_path, "llamafactory", "kto", 0.0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "dataset_info.json", "train.jsonl"]
    export(finished, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) in (
        ["README.md", "test.parquet", "train.parquet"],
        ["README.md", "train.parquet"],
    )


@pytest.mark.parametrize("name", ["README.md", "dataset_info.json", "train.jsonl", "test.parquet"])
def test_files_of_others_are_left_alone(finished: Reader, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with raises(DataError, key="--out", match=f"holds {name}.*--out"):
        export(finished, tmp_path, "llamafactory")
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "trll"}, "--format trll.*trl, simpo, llamafactory, axolotl, openrlhf"),
        ({"view": "dpo"}, "--view dpo.*pairs, kto, sft"),
        ({"test_share": 1.0}, "--test-share 1.0: give a share from 0"),
    ],
)
def test_options_that_cannot_be_are_refused(
    finished: Reader, tmp_path: Path, options: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        export(finished, tmp_path, **options)


def test_rows_come_in_groups(tmp_path: Path) -> None:
    with arriving(tmp_path, "parquet") as made:
        assert write_rows(map(example, range(20_001)), bytes(20_001), made, "trl", "pairs", None) == 0
        assert all(path.name.startswith(".") for path in tmp_path.iterdir())
    with pyarrow.parquet.ParquetFile(tmp_path / "train.parquet") as file:
        groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    assert groups == [10_000, 10_000, 1]
    assert made["train"].count == 20_001
    assert made["train"].digest == hashlib.sha256((tmp_path / "train.parquet").read_bytes()).hexdigest()
    assert [p.name for p in tmp_path.iterdir()] == ["train.parquet"]


@pytest.mark.parametrize(("form", "suffix"), [("trl", "parquet"), ("axolotl", "jsonl")])
def test_a_full_disk_leaves_no_half_file(tmp_path: Path, form: str, suffix: str) -> None:
    """A file-size limit makes the kernel refuse the write half-way, as a full disk does."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, old[1]))
        with (
            raises(StoreError, key="disk", match=r"train\.\w+: "),
            arriving(tmp_path, suffix) as made,
        ):
            write_rows(map(example, range(25_000)), bytes(25_000), made, form, "pairs", None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_at_the_card_leaves_nothing_either(
    finished: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise StoreError(f"{path}: the disk is full", key="disk")

    export(finished, tmp_path / "old", "axolotl")
    before = {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()}
    monkeypatch.setattr("sao.sharing.sinks.write_atomic", full)
    for name in ("old", "new"):
        with raises(StoreError, key="disk"):
            export(finished, tmp_path / name, "trl")
    assert list((tmp_path / "new").iterdir()) == []
    assert {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()} == before


def killed_at(run: Reader, out: Path, step: int) -> bool:
    """An export in a process of its own that SIGKILL ends before its `step`-th change of the folder; whether
    it got so far."""
    child = os.fork()
    if not child:
        steps = iter(range(1, step))

        def dying(act: Any) -> Any:
            def do(*given: Any, **more: Any) -> Any:
                if next(steps, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return act(*given, **more)

            return do

        try:
            for place, name in ((Path, "replace"), (Path, "unlink"), (os, "fsync")):
                setattr(place, name, dying(getattr(place, name)))
            export(run, out, "axolotl", "pairs", 0.2)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("earlier", [None, "llamafactory"])
def test_a_kill_leaves_no_card_that_speaks_of_other_data(
    finished: Reader, tmp_path: Path, earlier: str | None
) -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}

    export(finished, tmp_path / "whole", "axolotl", "pairs", 0.2)
    whole, seen = contents(tmp_path / "whole"), set()
    for step in range(1, 99):
        out = tmp_path / str(step)
        out.mkdir()
        if earlier:
            export(finished, out, earlier, "kto", 0.2)
        before = contents(out)
        was_killed = killed_at(finished, out, step)
        found = contents(out)
        if found not in (before, whole):
            assert found["README.md"].decode() == UNFINISHED
        seen.add((found == before, found == whole))
        if not was_killed:
            break
        assert found == whole or any(p.name.endswith(".tmp") for p in out.iterdir())
        export(finished, out, "axolotl", "pairs", 0.2)
        assert {p.name: p.read_bytes() for p in out.iterdir()} == whole  # nothing hidden is left either
    assert (step > 8, was_killed, found) == (True, False, whole)
    assert seen == {(True, False), (False, False), (False, True)}


def test_a_failure_on_the_way_leaves_an_earlier_export_whole(tmp_path: Path) -> None:
    def breaks() -> Iterator[Example]:
        yield from map(example, range(10_000))
        raise StoreError("records.jsonl, line 7: not JSON")

    with arriving(tmp_path, "parquet") as made:
        write_rows(map(example, range(3)), b"\0\1\0", made, "trl", "pairs", None)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert set(before) == {"train.parquet", "test.parquet"}
    with pytest.raises(StoreError, match="line 7"), arriving(tmp_path, "parquet") as made:
        write_rows(breaks(), bytes(10_000), made, "trl", "pairs", None)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_no_pairs_are_an_error(tmp_path: Path) -> None:
    with raises(DataError, key="pairs"), arriving(tmp_path, "jsonl") as made:
        write_rows([], b"", made, "axolotl", "pairs", None)
    assert list(tmp_path.iterdir()) == []


def test_what_is_split_is_what_is_written(finished: Reader) -> None:
    assert [p.id for p in paired(finished)] == [e.prompt.id for e in joined(finished)]
    pairs = [(pair.id, good.id, bad.id) for _, pair, good, bad in finished.labelled()]
    assert [(p.id, a.id, b.id) for e in joined(finished) for p, a, b in e.pairs] == pairs


# The files beside, and the card.


def test_llama_factory_finds_the_columns(finished: Reader, tmp_path: Path) -> None:
    columns = {}
    for view in VIEWS:
        export(finished, tmp_path / view, "llamafactory", view, 0.2)
        info = json.loads((tmp_path / view / "dataset_info.json").read_text())
        assert {name: entry["file_name"] for name, entry in info.items()} == {
            "sao": "train.jsonl",
            "sao_test": "test.jsonl",
        }
        assert {entry["formatting"] for entry in info.values()} == {"sharegpt"}
        assert info["sao"].get("ranking", False) is (view == "pairs")
        columns[view] = info["sao"]["columns"]
        assert set(columns[view].values()) <= set(read(tmp_path / view, "train")[0])
    assert columns["pairs"] == {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    assert columns["kto"] == {"messages": "conversations", "kto_tag": "label"}


def test_the_part_of_an_axolotl_config_names_files_and_strategy(finished: Reader, tmp_path: Path) -> None:
    types = {}
    for view in VIEWS:
        export(finished, tmp_path / view, "axolotl", view, 0.2)
        part = yaml.safe_load((tmp_path / view / "axolotl.yaml").read_text())
        assert [part[name][0]["path"] for name in ("datasets", "test_datasets")] == [
            "train.jsonl",
            "test.jsonl",
        ]
        types[view] = part["datasets"][0]["type"]
        assert part.get("rl") == {"pairs": "dpo", "kto": "kto", "sft": None}[view]
    assert types == {"pairs": "chat_template.default", "kto": "chatml.argilla_chat", "sft": "chat_template"}


def front_matter(card: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return found


def test_the_card_says_what_the_data_are(finished: Reader, tmp_path: Path) -> None:
    found = audit(finished)
    done = export(finished, tmp_path, "trl", "pairs", 0.2, found)
    card = Path(done.card).read_text("utf-8")
    head = front_matter(card)
    assert head["configs"][0]["data_files"] == [
        {"split": "train", "path": "train.parquet"},
        {"split": "test", "path": "test.parquet"},
    ]
    assert (head["license"], head["size_categories"]) == ("apache-2.0", ["n<1K"])
    for part in (
        f"{done.train:,} for training, {done.test:,} for testing",
        "| personas | builtin:world; licence: Apache-2.0 |",
        "sao export RUN --format trl --view pairs --test-share 0.2",
        "n: 90\n",
        "| pairs | 270 | 0 |" if done.train + done.test == 270 else f"| pairs | {done.train + done.test} |",
        found.verdict[1:],
        f"| pairs kept, of the possible ones | {100 * known(known(found.kept).share):.1f} % |",
        "arXiv:2510.06652",
        "10 of the prompts are held out",
        "DPOTrainer(model",
    ):
        assert part in card
    assert "Non-commercial" not in card
    for name in read(tmp_path, "train")[0]:
        assert f"| `{name}` | " in card
    assert "What the judge is worth" not in Path(export(finished, tmp_path / "b").card).read_text("utf-8")


def card_of(run: Reader, change: dict[str, Any]) -> str:
    """The card of a run whose manifest is another one in some keys."""
    parts = asdict(read_manifest(run.root))
    for path, value in change.items():
        *inner, last = path.split(".")
        place = parts
        for key in inner:
            place = place[key]
        place[last] = value
    made = Manifest(**parts)
    facts = Exported(
        view="pairs", files={"train": "train.parquet"}, rows={"train": 12_345}, digest="", left_out=0,
        columns={}, usage="",
        options="",
    )  # fmt: skip
    assert "aligned" in model_card(made, run.funnel())
    return data_card(made, run.funnel(), facts)


def test_a_non_commercial_licence_is_said_aloud(finished: Reader) -> None:
    card = card_of(finished, {"licences.personas": "CC-BY-NC-SA-4.0", "licences.model": "llama3"})
    assert card.index("**Non-commercial use only**") < card.index("## Load it")
    assert front_matter(card)["license"] == ["llama3", "cc-by-nc-sa-4.0"]
    assert front_matter(card)["size_categories"] == ["10K<n<100K"]
    assert "stands in both" not in card  # there is no test data


def test_a_licence_that_the_hub_does_not_know_keeps_its_words(finished: Reader) -> None:
    head = front_matter(
        card_of(finished, {"licences.personas": "Our own, 2026", "licences.model": "unknown: see there"})
    )
    assert head["license"] == ["unknown", "other"]
    assert head["license_name"] == "Our own, 2026"


def test_a_file_of_personas_is_named_without_its_folder(finished: Reader, tmp_path: Path) -> None:
    (tmp_path / "people.jsonl").write_text("{}")
    card = card_of(finished, {"config.personas.source": str(tmp_path / "people.jsonl")})
    assert "| personas | people.jsonl; licence:" in card
    assert str(tmp_path) not in card


def test_an_imported_set_is_said_to_be_others(finished: Reader) -> None:
    change = {
        "config.pairs.imported": "abc",
        "config.responses.n": 2,
        "licences": {"model": "none (no model was asked)", "pairs": "MIT"},
    }
    card = card_of(finished, change)
    assert front_matter(card)["license"] == "mit"
    assert "preferences that others made, imported" in card
    assert "sao import" in card
    assert "| model |" not in card


def test_the_model_that_is_trained_on_given_pairs_does_not_bind_them(finished: Reader) -> None:
    change = {
        "config.pairs.imported": "abc",
        "config.responses.n": 2,
        "licences": {"model": "CC-BY-NC-4.0", "pairs": "MIT"},
    }
    card = card_of(finished, change)
    assert front_matter(card)["license"] == "mit"
    assert "Non-commercial" not in card
    assert "CC-BY-NC" not in card
    made = replace(read_manifest(finished.root), licences={"model": "CC-BY-NC-4.0", "pairs": "MIT"})
    made.config["pairs"]["imported"] = "abc"
    made.config["responses"]["n"] = 2
    assert "the licence of the model (CC-BY-NC-4.0), and it binds this model" in model_card(
        made, finished.funnel()
    )
    bound = card_of(finished, change | {"licences": {"model": "MIT", "pairs": "CC_BY_NC_4.0"}})
    assert "the licence of the pairs (CC_BY_NC_4.0), and it binds this data set" in bound
    assert front_matter(bound)["license"] == "cc-by-nc-4.0"


@pytest.mark.parametrize(
    ("licence", "forbids"),
    [
        ("CC-BY-NC-SA-4.0", True), ("CC_BY_NC_4.0", True), ("cc by nc 4.0", True), ("cc-by-nc4.0", True),
        ("Non Commercial", True), ("NON_COMMERCIAL use", True), ("non-commercial", True), ("Noncommercial",
        True),
        ("CC-BY-4.0", False), ("Example Inc.", False), ("NCSA", False), ("see LICENCE", False), ("commercial",
        False),
    ],
)  # fmt: skip
def test_licences_that_forbid_commercial_use(licence: str, forbids: bool) -> None:
    assert non_commercial(licence) is forbids


def test_a_server_s_address_is_left_out(finished: Reader) -> None:
    engine = read_manifest(finished.root).config["engine"]
    engine |= {
        "name": "openai",
        "openai": engine["openai"] | {"base_url": "http://10.1.2.3:8000/v1", "retries": 3},
    }
    card = card_of(finished, {"config.engine": engine})
    assert "10.1.2.3" not in card
    assert "retries: 3" in card


def test_a_data_set_goes_to_the_hub_or_stays_with_the_next_command(
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
    assert push_dataset(tmp_path, "me/pairs") == "the address"
    (name, made), (_, sent) = calls
    assert (name, made["private"], made["repo_type"]) == ("me/pairs", True, "dataset")
    assert (sent["repo_type"], sent["folder_path"]) == ("dataset", tmp_path)
    assert "train.*" in sent["allow_patterns"]
    with raises(
        StoreError,
        key="--push-to-hub",
        match="401.*hf upload me/refused .*--repo-type dataset",
    ):
        push_dataset(tmp_path, "me/refused")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a hub that nobody answers at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return address


def test_without_a_network_an_upload_says_what_to_do_next(tmp_path: Path, no_network: str) -> None:
    with raises(
        StoreError,
        key="--push-to-hub",
        match="Conn.*hf upload me/x .*--repo-type dataset",
    ):
        push_dataset(tmp_path, "me/x")
    with raises(
        StoreError,
        key="train.push_to_hub",
        match="Conn.*hf upload me/x",
    ):
        push_model(tmp_path, "me/x")


def test_a_network_that_fails_while_a_data_set_is_read_is_an_error_with_the_next_step(
    no_network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import get_session

    def rows(*names: Any, **options: Any) -> Iterator[dict[str, str]]:
        yield {"prompt": "Why?"}
        get_session().get(no_network)

    monkeypatch.setattr("datasets.load_dataset", rows)
    found = read_rows("me/x", ["prompt"], what="prompts", option="--prompts.revision", revision="main")
    assert next(found) == ("me/x, row 0", {"prompt": "Why?"})
    with raises(DataError, key="hub data set", match="me/x: .*Conn"):
        next(found)


# The tools: https://github.com/huggingface/datasets and TRL; scripts/check_exports.py has the others.


@pytest.mark.slow
def test_datasets_loads_every_export_by_its_card(
    finished: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for form in FORMS:
        for view in VIEWS:
            out = tmp_path / f"{form}-{view}"
            done = export(finished, out, form, view, 0.2)
            data = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
            assert {split: len(rows) for split, rows in data.items()} == {
                "train": done.train,
                "test": done.test,
            }
            assert data["train"][0]["id"] == read(out, "train")[0]["id"]
    again = export(finished, out, form, view, 0.5)  # what it keeps of the last one may not come back
    data = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert (len(data["train"]), len(data["test"])) == (again.train, again.test)


@pytest.mark.slow
@pytest.mark.parametrize(("view", "trainer"), [("pairs", "DPO"), ("kto", "KTO"), ("sft", "SFT")])
def test_trl_trains_on_an_export(finished: Reader, tmp_path: Path, view: str, trainer: str) -> None:
    import datasets
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sao.models.locate import find_model

    export(finished, tmp_path / "data", "trl", view, 0.2)
    data = datasets.load_dataset(str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    path = str(find_model("builtin:world"))
    model = AutoModelForCausalLM.from_pretrained(path)
    before = [p.detach().clone() for p in model.parameters()]
    settings = getattr(trl, f"{trainer}Config")(
        output_dir=str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=4, use_cpu=True,
        bf16=False, report_to="none",
        save_strategy="no", disable_tqdm=True, max_length=256, learning_rate=1e-3,
    )  # fmt: skip
    job = getattr(trl, f"{trainer}Trainer")(
        model, args=settings, train_dataset=data["train"], eval_dataset=data["test"],
        processing_class=AutoTokenizer.from_pretrained(path),
    )  # fmt: skip
    assert (len(job.train_dataset), len(job.eval_dataset)) == (len(data["train"]), len(data["test"]))
    done = job.train()
    assert done.global_step == 2
    assert math.isfinite(done.training_loss)
    assert any((a != b).any() for a, b in zip(before, model.parameters(), strict=True))
