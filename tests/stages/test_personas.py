"""Personas: from the model itself, from files and data sets, built in."""

import gzip
import json
import random
import re
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from sao.config import (
    Config,
    PersonasConfig,
    make_config,
)
from sao.data.readers import draw_texts
from sao.engines import Sampling
from sao.engines.scripted import ScriptedEngine
from sao.errors import ConfigError, DataError, DropError
from sao.method import run
from sao.pipeline.folder import reader
from sao.records import Message, Persona
from sao.stages.personas import (
    batch_size,
    draw_traits,
    licence_of,
    load_traits,
    non_commercial,
    read_personas,
)
from sao.stages.rows import is_held_out
from support.errors import raises
from support.made_up import self_made, writer
from support.pair_files import write
from support.run_files import drops_of


def people(root: Path, c: Config, engine: ScriptedEngine) -> list[Persona]:
    return list(reader(c, root, engine).stage("personas").records(Persona))


def test_the_model_writes_as_many_distinct_personas_as_are_asked_for(tmp_path: Path) -> None:
    said: list[str] = []
    c, engine = self_made(), writer(2000)
    run(c, tmp_path, until="prompts", engine=engine, notify=said.append)
    found = people(tmp_path, c, engine)
    assert len(found) == 340
    assert len({p.text for p in found}) == 340
    assert [p.row for p in found] == sorted([2 * i for i in range(300)] + [2 * j + 1 for j in range(40)])
    batches = [line for line in said if line.startswith("drafts, batch")]
    assert len(batches) >= 2
    assert batches[0].startswith("drafts, batch 1: ")
    assert batches[-1].endswith("340 of 340 exist")
    counts = reader(c, tmp_path, engine).stage("personas").counts
    drafts = sum(
        len((folder / "records.jsonl").read_text().splitlines())
        for folder in tmp_path.glob("round-1/drafts-*")
    )
    assert counts.records + counts.dropped == drafts
    assert set(counts.reasons) <= {"repeats an earlier persona", "more than asked for"}


def test_a_source_that_dries_up_stops_and_says_so_and_less_can_be_taken(tmp_path: Path) -> None:
    engine = writer(150)
    with raises(DropError, key="personas.writing.min_new") as raised:
        run(self_made(), tmp_path, until="prompts", engine=engine)
    said = re.findall(
        r"(\d+) distinct ones exist .*--personas\.n (\d+) --personas\.held_out (\d+)\)", str(raised.value)
    )
    exist, n, held_out = (int(number) for number in said[0])
    assert 100 < exist <= 150
    assert n + held_out == exist
    calls, fewer = engine.calls, self_made(personas={"n": n, "held_out": held_out})
    run(fewer, tmp_path, until="prompts", engine=engine)
    assert engine.calls - calls == exist  # the prompts; no draft is written again
    assert len(people(tmp_path, fewer, engine)) == exist


def test_similar_personas_are_dropped_as_they_come(tmp_path: Path) -> None:
    def reply(messages: tuple[Message, ...], seed: int, sampling: Sampling) -> str:
        number, variant = seed % 100, seed % 7
        words = " ".join(f"w{number}x{i}" for i in range(12))
        return (
            f"Persona: {words} and variant {variant}"
            if "Prompt:" not in messages[-1].content
            else f"Prompt: ask {seed}"
        )

    c = self_made(personas={"n": 80, "held_out": 0, "writing": {"min_new": 0}})
    run(c, tmp_path, until="prompts", engine=ScriptedEngine(reply=reply))
    kept = people(tmp_path, c, ScriptedEngine())
    assert len({p.text.split()[0] for p in kept}) == 80  # one variant of each
    dropped = drops_of(tmp_path, "personas")
    one = next(row for row in dropped if row["reason"] == "repeats an earlier persona")
    new, earlier = one["detail"].split(" | ")
    assert new.split()[0] == earlier.split()[0]


def test_relatives_are_asked_for_and_the_draft_hangs_on_its_id_alone(tmp_path: Path) -> None:
    asked: list[str] = []

    def reply(messages: tuple[Message, ...], seed: int, sampling: Sampling) -> str:
        asked.append(messages[-1].content)
        return f"Persona: number {seed} of {seed + 1} and {seed + 2} with {seed + 3}"

    run(
        self_made(personas={"n": 600}, prompts={"marker": "Persona:"}),
        tmp_path,
        until="prompts",
        engine=ScriptedEngine(reply=reply),
    )
    drafts = [text for text in asked if not text.startswith("Here is somebody who uses")]
    related = [text for text in drafts[256:] if text.startswith("Here is a person:")]
    assert not any(text.startswith("Here is a person:") for text in drafts[:256])
    assert 0.3 < len(related) / len(drafts[256:]) < 0.7
    assert all(any(relation in text for relation in load_traits("general").relations) for text in related)


def test_traits_are_drawn_one_from_an_axis() -> None:
    for name in ("general", "world"):
        grid = load_traits(name)
        words = sum(len(phrase.split()) for axis in grid.axes for phrase in axis)
        assert 40 < words < 1000
        drawn = draw_traits(grid, random.Random(1), 3)
        assert len({next(i for i, axis in enumerate(grid.axes) if trait in axis) for trait in drawn}) == 3
    assert draw_traits(load_traits("world"), random.Random(1), 0) == []
    assert len(draw_traits(load_traits("world"), random.Random(1), 99)) == 4


def test_a_broken_grid_is_an_error(tmp_path: Path) -> None:
    for text in ("axes: 3", "axes: [[a], []]\nrelations: [b]", "[", "axes: [[a]]\nrelations: []",
                 "axes: [[a, no]]\nrelations: [b]", "axes: [[30]]\nrelations: [b]", "axes: [[a]]\nrelations: "
                                                                                    "[.nan]",
                 "axes: [[a, null]]\nrelations: [b]", "axes: [ab]\nrelations: [b]", "axes: [[a]]\nrelations: "
                                                                                    "ab"):  # fmt: skip
        (tmp_path / "t.yaml").write_text(text)
        with raises(ConfigError, key="personas.traits", match=r"t\.yaml"):
            load_traits(str(tmp_path / "t.yaml"))
        load_traits.cache_clear()


def test_batches_grow_with_what_stands() -> None:
    assert [batch_size(kept) for kept in (0, 300, 5000)] == [256, 256, 2500]


def test_licences_are_known_or_asked_for() -> None:
    assert licence_of(PersonasConfig(source="proj-persona/PersonaHub"), "x") == "CC-BY-NC-SA-4.0"
    assert "unknown: set personas.licence" in licence_of(PersonasConfig(source="a/b"), "x")
    assert licence_of(PersonasConfig(source="a/b", licence="MIT"), "x") == "MIT"
    assert "llama3" in licence_of(PersonasConfig(source="self"), "llama3")
    assert [non_commercial(name) for name in ("CC-BY-NC-SA-4.0", "cc by-nc 4.0", "Noncommercial", "CC BY 4.0",
    "Apache-2.0")] == [
        True, True, True, False, False]  # fmt: skip


def test_a_non_commercial_licence_is_said_aloud_and_written_down(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n".join(f"person {i}" for i in range(20)))
    given = {"source": str(tmp_path / "p.txt"), "licence": "CC BY-NC-SA 4.0", "n": 10, "held_out": 2}
    said: list[str] = []
    run(self_made(personas=given), tmp_path / "run", until="prompts", engine=writer(9), notify=said.append)
    assert any(line.startswith("NON-COMMERCIAL: the licence of the personas") for line in said)
    assert (
        json.loads((tmp_path / "run" / "manifest.json").read_text())["licences"]["personas"]
        == "CC BY-NC-SA 4.0"
    )


# Sources of others


def test_a_draw_from_a_file_hangs_on_the_seed_and_holds_each_text_once(tmp_path: Path) -> None:
    lines = [f"person {i}" for i in range(500)] * 2 + ["PERSON 3"]
    with gzip.open(tmp_path / "p.csv.gz", "wt") as file:
        file.write("persona\n" + "\n".join(lines) + "\n")
    c = PersonasConfig(source=str(tmp_path / "p.csv.gz"), n=50, held_out=10)
    first, again, other = (list(read_personas(c, seed)) for seed in (1, 1, 2))
    assert first == again
    assert {p.text for p in first} != {p.text for p in other}
    assert sorted(p.row for p in first) == sorted([2 * i for i in range(50)] + [2 * j + 1 for j in range(10)])
    assert len({p.text.casefold() for p in first}) == 60
    in_order = list(read_personas(c.model_copy(update={"sample": "first"}), 1))
    assert [p.text for p in in_order if is_held_out(p.row)] == [f"person {i}" for i in range(10)]
    assert [p.text for p in in_order if not is_held_out(p.row)] == [f"person {i}" for i in range(10, 60)]


def test_each_text_is_drawn_as_often_as_another() -> None:
    texts = [f"t{i}" for i in range(20)]
    draws = [list(draw_texts(lambda: iter(texts), 5, 5, seed)) for seed in range(2000)]
    for wanted in (False, True):
        drawn = Counter(text for draw in draws for _, held_out, text in draw if held_out == wanted)
        assert set(drawn) == set(texts)
        assert all(400 < n < 600 for n in drawn.values())  # 500 ± 19
    assert all(len({text for _, _, text in draw}) == 10 for draw in draws)  # nobody is in both


def test_a_draw_grows_and_keeps_what_it_has() -> None:
    texts = [f"t{i}" for i in range(20)]

    def drawn(n: int, held_out: int) -> dict[tuple[int, bool], str]:
        return {(i, held): text for i, held, text in draw_texts(lambda: iter(texts), n, held_out, 3)}

    few, more = drawn(4, 3), drawn(12, 5)
    assert len(few) == 7
    assert few.items() <= more.items()
    assert len(set(more.values())) == 17
    assert len(drawn(15, 5)) == 20
    assert len(set(drawn(15, 8).values())) == 20  # there are no more


def test_too_small_a_source_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a\nb\nB\n")
    with raises(DataError, key="personas.n", match=r"holds 2 .*--personas\.source self"):
        list(read_personas(PersonasConfig(source=str(tmp_path / "p.txt"), n=3, held_out=0), 0))


def test_personas_written_by_the_model_survive_kills_between_and_within_batches(tmp_path: Path) -> None:
    class Killed(Exception):  # noqa: N818
        pass

    def dying(after: int) -> ScriptedEngine:
        calls, whole = 0, writer(2000)

        def reply(messages: tuple[Message, ...], seed: int, sampling: Sampling) -> str:
            nonlocal calls
            calls += 1
            if calls > after:
                raise Killed
            return whole.reply(messages, seed, sampling)

        return ScriptedEngine(reply=reply)

    run(self_made(), tmp_path / "whole", until="prompts", engine=writer(2000))
    for after in (100, 150, 80, 200):
        with pytest.raises(Killed):
            run(self_made(), tmp_path / "killed", until="prompts", engine=dying(after))
    run(self_made(), tmp_path / "killed", until="prompts", engine=writer(2000))
    both = [
        {str(p.relative_to(tmp_path / out)): p.read_bytes() for p in (tmp_path / out).rglob("*.jsonl")}
        for out in ("whole", "killed")
    ]
    assert both[0] == both[1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"a\n" + b"x" * 5000 + b"\nb\n", r"p\.txt, line 2: longer than 0 MB"),
        (
            "p.jsonl",
            b'{"persona": "a"}\n{"persona": "' + b"x" * 5000 + b'"}\n',
            r"p\.jsonl, line 2: longer than",
        ),
        ("p.csv", b"persona\na\n" + b"\xff\xfe" * 4 + b"\n", r"p\.csv, line 3: not UTF-8"),
        ("p.txt", b"a\nb\0c\n", r"p\.txt, line 2: holds NUL bytes"),
        (
            "p.jsonl",
            b'{"persona": {"text": "a"}}\n',
            r"p\.jsonl, line 1: no text under the key 'persona'.*--personas\.column",
        ),
        (
            "p.jsonl",
            b'{"persona": "a"}\n["b"]\n',
            r"p\.jsonl, line 2: no text under the key 'persona' \(it holds: list\)",
        ),
        (
            "p.csv",
            b"name,age\nx,1\n",
            r"p\.csv, line 2: no text under the key 'persona' \(it holds: name, age\)",
        ),
        ("p.jsonl.gz", b"not gzip at all", r"p\.jsonl\.gz: no whole gzip file"),
        ("p.txt.gz", gzip.compress(b"a\n" * 1000, mtime=0)[:-9], r"p\.txt\.gz: no whole gzip file"),
        ("p.jsonl", b"[" * 100_00, r"p\.jsonl, line 1: (not JSON|longer)"),
    ],
)
def test_hostile_files_of_personas_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, message: str
) -> None:
    monkeypatch.setattr("sao.data.text_files.MAX_LINE", 4096)
    (tmp_path / name).write_bytes(content)
    for sample in ("random", "first"):
        c = PersonasConfig(source=str(tmp_path / name), n=2, held_out=0, sample=sample)
        with pytest.raises(DataError, match=message):
            list(read_personas(c, 0))


def test_odd_personas_pass_or_count_once(tmp_path: Path) -> None:
    rows = [
        "a  person\\n",
        "A PERSON",
        "",
        "   ",
        "\\ud800",
        "b\\u0000c",
        "\\ufeffd",
        "日本",
        "🙂",
        "cut \\ud83d",
    ]
    lines = [f'{{"persona": "{row}", "id": 1}}' for row in rows] + ['{"persona": null, "id": 1}']
    (tmp_path / "p.jsonl").write_text("\n".join(lines), encoding="utf-8")
    c = PersonasConfig(source=str(tmp_path / "p.jsonl"), n=6, held_out=0, sample="first")
    assert [p.text for p in read_personas(c, 0)] == ["a person", "b\0c", "\ufeffd", "日本", "🙂", "cut"]
    run(self_made(personas=c.model_dump()), tmp_path / "run", until="prompts", engine=writer(9))
    assert len(people(tmp_path / "run", self_made(personas=c.model_dump()), writer(9))) == 6


# From files


def test_personas_from_jsonl_txt_and_parquet_are_the_same(tmp_path: Path) -> None:
    texts = ["a baker", "a smith", "A  Baker", "a nurse"]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"persona": t}) + "\n" for t in texts))
    (tmp_path / "p.txt").write_text("\n".join(texts) + "\n")
    pyarrow.parquet.write_table(pyarrow.table({"persona": texts}), tmp_path / "p.parquet")
    for name in ("p.jsonl", "p.txt", "p.parquet"):
        config = PersonasConfig(source=str(tmp_path / name), n=2, held_out=1)
        assert [p.text for p in read_personas(config, 0)] == ["a baker", "a smith", "a nurse"]


def test_a_broken_line_is_named_with_file_and_number(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"persona": "a"}\n{"persona": \n')
    with raises(DataError, key="JSON", match=r"p\.jsonl, line 2"):
        list(read_personas(PersonasConfig(source=str(file), n=2, held_out=0), 0))
    file.write_text('{"text": "a"}\n')
    with raises(DataError, key="personas.column", match=r"line 1.*'persona' \(it holds: text\)"):
        list(read_personas(PersonasConfig(source=str(file), n=1, held_out=0), 0))


def test_too_few_personas_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\n")
    with raises(DataError, key="personas.n", match="holds 1 "):
        list(read_personas(PersonasConfig(source=str(tmp_path / "p.txt"), n=2, held_out=0), 0))


def test_a_file_counts_by_its_content(tmp_path: Path) -> None:
    for name, text in (("a.txt", "x\n"), ("b.txt", "x\n"), ("c.txt", "y\n")):
        (tmp_path / name).write_text(text)
    configs = (make_config({"personas": {"source": str(tmp_path / f"{n}.txt")}}) for n in "abc")
    a, b, c = (reader(config, tmp_path / "run").stage("personas").path for config in configs)
    assert a == b
    assert a != c


def test_a_hub_data_set_needs_its_revision() -> None:
    with raises(DataError, key="revision"):
        list(read_personas(PersonasConfig(source="some/set", n=1), 0))


def test_built_in_personas_and_nobody() -> None:
    for source in ("builtin:general", "builtin:world"):
        found = list(read_personas(PersonasConfig(source=source, n=1000, held_out=200), 0))
        assert len({p.text.casefold() for p in found}) == 1200
    nobody = list(read_personas(PersonasConfig(source="none", n=3, held_out=1), 0))
    assert [p.text for p in nobody] == [""] * 4
    assert len({p.id for p in nobody}) == 4


# Every source


def test_personas_of_every_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"persona": "a baker"}, {"persona": None}, {"persona": "a smith"}]
    for name in ("p.jsonl", "p.json", "p.parquet"):
        config = PersonasConfig(source=write(tmp_path / name, rows), n=2, held_out=0, sample="first")
        assert [p.text for p in read_personas(config, 0)] == ["a baker", "a smith"]
    with raises(
        DataError,
        key="personas.column",
        match=r"p\.parquet, row 0.*'x' \(it holds: persona\)",
    ):
        list(read_personas(PersonasConfig(source=str(tmp_path / "p.parquet"), column="x", n=1), 0))
    with raises(DataError, key="personas.source"):
        list(read_personas(PersonasConfig(source=str(tmp_path), n=1), 0))
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: iter(rows))
    config = PersonasConfig(source="some/set", revision="abc123", n=2, held_out=0, sample="first")
    assert [p.text for p in read_personas(config, 0)] == ["a baker", "a smith"]
