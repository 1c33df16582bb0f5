"""Leaks: naming and reading evaluation sets, shares worked by hand, items within texts, the report."""

import csv
import gzip
import json
import math
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sao.analysis import contamination
from sao.analysis.contamination import EXAMPLES, leak_report, tfidf_candidates
from sao.data import contamination_sets
from sao.data.contamination import LeakIndex
from sao.data.contamination_sets import (
    PRESETS,
    Benchmark,
    Source,
    load_benchmarks,
    on_disk,
    parse_source,
    source_identity,
)
from sao.errors import ConfigError, DataError
from sao.report.contamination import show_contamination
from sao.results.contamination import Contamination

TEN = "one two three four five six seven eight nine ten"


def benchmark(*texts: str, name: str = "bench") -> Benchmark:
    return Benchmark(name=name, items=[(str(i), text) for i, text in enumerate(texts)])


def shares(items: list[str], text: str, max_overlap: float = 0.0001) -> dict[str, float]:
    return {leak.item: leak.share for leak in LeakIndex([benchmark(*items)], max_overlap).find_all(text)}


def write_rows(path: Path, rows: Iterable[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# Naming sets


def test_the_presets_are_pinned() -> None:
    asked = (
        "alpaca_eval mt_bench arena_hard gsm8k truthfulqa hellaswag winogrande arc mmlu ifeval humaneval mbpp"
    )
    assert set(asked.split()) <= set(PRESETS)
    for name in PRESETS:
        source = parse_source(name)
        assert source.name == name
        assert len(source.revision or "") == 40
        assert source.path.count("/") == 1
        again = parse_source(str(source))
        assert (again.path, again.revision, again.subset, again.split, again.file) == (
            source.path, source.revision, source.subset, source.split, source.file,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("gsm8k@v1", Source(name="gsm8k", path="openai/gsm8k", revision="v1", subset="main",
        column="question")),
        ("gsm8k=x/y.jsonl#q", Source(name="gsm8k", path="x/y.jsonl", column="q")),
        ("mine=x.csv", Source(name="mine", path="x.csv")),
        ("data/x.jsonl#ask", Source(name="x.jsonl", path="data/x.jsonl", column="ask")),
        ("some/set@abc", Source(name="some/set", path="some/set", revision="abc")),
        ("some/set@abc:sub:dev", Source(name="some/set", path="some/set", revision="abc", subset="sub",
        split="dev")),
        ("some/set@abc::dev", Source(name="some/set", path="some/set", revision="abc", split="dev")),
        ("some/set@abc:a/b.jsonl", Source(name="some/set", path="some/set", revision="abc",
        file="a/b.jsonl")),
        ("some/set", Source(name="set", path="some/set")),
    ],
)  # fmt: skip
def test_how_sets_are_named(given: str, found: Source) -> None:
    assert parse_source(given) == found


def test_unknown_names_list_the_presets() -> None:
    with pytest.raises(
        ConfigError, match=r"no evaluation set 'gsm9k': the presets are alpaca_eval.*ID@REVISION"
    ):
        parse_source("gsm9k")


def test_a_file_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a#b.jsonl", "a=b.jsonl", "a@b.jsonl", "gsm8k"):
        Path(name).write_text('"text"\n')
        assert parse_source(name) == Source(name=name, path=name)


def test_hub_sets_need_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"give its revision too .@REVISION after its name"):
        load_benchmarks(["some/set"])


# Reading sets


def test_hub_sets_are_read_as_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def rows(path: str, columns: Any, **options: Any) -> Iterator[tuple[str, Any]]:
        asked.append((path, list(columns), options["revision"], options["subset"], options["split"]))
        return iter([("row 0", {"question": TEN})])

    monkeypatch.setattr(contamination_sets, "read_rows", rows)
    found = load_benchmarks(["some/set@abc:sub:dev#question", "mmlu"])
    assert asked[0] == ("some/set", ["question"], "abc", "sub", "dev")
    assert asked[1][::2] == ("cais/mmlu", parse_source("mmlu").revision, "test")
    assert [b.source for b in found] == ["some/set@abc:sub:dev", f"cais/mmlu@{asked[1][2]}:all:test"]


def test_one_file_of_a_hub_set_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    (tmp_path / "got.json").write_text(json.dumps([{"instruction": TEN, "output": "x"}]))
    asked: list[Any] = []

    def fetch(*place: str, **options: str) -> str:
        asked.append((*place, *options.values()))
        if len(asked) > 1:
            raise OSError("no network")
        return str(tmp_path / "got.json")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    (found,) = load_benchmarks(["alpaca_eval"])
    assert asked == [
        ("tatsu-lab/alpaca_eval", "alpaca_eval.json", "dataset", parse_source("alpaca_eval").revision)
    ]
    assert (found.name, found.items) == ("alpaca_eval", [("0", TEN)])
    with pytest.raises(
        DataError, match=r"arena-hard-v2\.0/question\.jsonl: cannot be fetched.*arena_hard=FILE"
    ):
        load_benchmarks(["arena_hard"])
    assert on_disk(Source(name="x", path="x.jsonl")) == Source(name="x", path="x.jsonl")


def test_files_of_all_kinds(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"id": "7", "question": TEN}, {"id": "8", "question": "What is it, then?"}]
    items = [("0", TEN), ("1", "What is it, then?")]
    write_rows(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.json").write_text(json.dumps(rows))
    with (tmp_path / "c.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "question"])
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    (tmp_path / "e.txt").write_text("\n".join(row["question"] for row in rows))
    (tmp_path / "f.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    found = load_benchmarks(str(path) for path in sorted(tmp_path.iterdir()))
    assert [b.items for b in found] == [items] * 6
    assert len({b.digest for b in found}) == 1
    assert [b.name for b in found] == ["a.jsonl", "b.json", "c.csv", "d.parquet", "e.txt", "f.jsonl.gz"]


def test_a_preset_from_a_file_and_sets_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    one = write_rows(
        tmp_path / "test.jsonl", [{"prompt": ["first turn here", "second turn here"], "category": "x"}]
    )
    two = write_rows(tmp_path / "x" / "test.jsonl", [{"question": TEN}])
    found = load_benchmarks([f"mt_bench={one}", one, two, two])
    assert [b.name for b in found] == ["mt_bench", "test.jsonl", two]
    assert found[0].items == [("0.1", "first turn here"), ("0.2", "second turn here")]
    assert found[0].source == one


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"Question": "ask", "Type": "x"}, ["ask"]),
        ({"prompt": "second", "instruction": "first"}, ["first"]),
        ({"instruction": "", "prompt": "ask"}, ["ask"]),
        ({"turns": [{"content": "a b"}, {"content": "c d"}]}, ["a b", "c d"]),
        (
            {"messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "told"}]},
            ["ask"],
        ),
        ({"content": [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "told"}]}, ["ask"]),
        ({"messages": {"role": "user", "content": [{"type": "text", "text": "ask"}]}}, ["ask"]),
        ({"turns": [{"role": None, "content": None, "from": "human", "value": "ask"}]}, ["ask"]),
        ({"prompt": "\n\nHuman: ask\n\nAssistant: told\n\nHuman: more\n\nAssistant:"}, ["ask", "more"]),
        ({"question": None}, []),
        ({"question": " "}, []),
        ("a line", ["a line"]),
        ("  ", []),
    ],
)
def test_where_the_question_stands(tmp_path: Path, row: Any, texts: list[str]) -> None:
    place = write_rows(
        tmp_path / "x.jsonl", [{"question": "the first"} if isinstance(row, dict) else "the first", row]
    )
    (found,) = load_benchmarks([place])
    assert [text for _, text in found.items] == ["the first", *texts]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": math.nan}, "but NaN under question"),
        ({"question": 0}, "but a number under question"),
        ({"question": False}, "but false under question"),
        ({"turns": ["a", math.nan]}, "but NaN under turns"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": 3}]},
            "but a number under messages",
        ),
        ({"messages": [{"role": "assistant", "content": "told"}]}, "it holds: messages"),
        ({"messages": [{"role": "tool", "content": "42"}]}, "it holds: messages"),
        ({"question": {"text": "a"}}, "but an object under question"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "but a list under messages",
        ),
    ],
)
def test_what_is_no_text_is_no_item(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"line 2: no text under .*{message}"):
        load_benchmarks([write_rows(tmp_path / "x.jsonl", [{"question": "the first"}, row])])


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_missing_columns_are_named(tmp_path: Path, kind: str) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / f"x.{kind}"
    rows = [{"ask": TEN, "level": 3}]
    if kind == "jsonl":
        write_rows(path, rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    with pytest.raises(DataError, match=r"no text under turns or messages.*it holds: ask, level.*SET#COLUMN"):
        load_benchmarks([str(path)])
    with pytest.raises(DataError, match=r"no text under question \(it holds: ask, level\)"):
        load_benchmarks([f"{path}#question"])
    with pytest.raises(DataError, match=r"no text under level"):
        load_benchmarks([f"{path}#level"])
    assert load_benchmarks([f"{path}#ask"])[0].items == [("0", TEN)]


def test_sets_without_items_and_rows_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no evaluation items"):
        load_benchmarks([write_rows(tmp_path / "x.jsonl", [{"question": ""}])])
    with pytest.raises(DataError, match=r"line 1: no text.*it holds: int"):
        load_benchmarks([write_rows(tmp_path / "y.jsonl", [3])])
    with pytest.raises(DataError, match="no such file of evaluation items"):
        load_benchmarks([str(tmp_path / "none.jsonl")])


def test_the_identity_follows_what_is_in_a_file(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl", [{"question": TEN}])
    before = source_identity(path)
    assert before == source_identity(f"gsm8k={path}") != path
    assert source_identity(f"{path}#question") == before + "#question"
    write_rows(tmp_path / "x.jsonl", [{"question": "other"}])
    assert source_identity(f"gsm8k={path}") != before
    assert source_identity("gsm8k") == PRESETS["gsm8k"]


# Shares


def test_shares_worked_by_hand() -> None:
    # ten words: three 8-grams
    assert shares([TEN], f"I say {TEN} indeed") == {"0": 1}
    assert shares([TEN], "one two three four five six seven eight nine, I say ten") == {
        "0": pytest.approx(2 / 3)
    }
    assert shares([TEN], "two three four five six seven eight nine") == {"0": pytest.approx(1 / 3)}
    assert shares([TEN], "one two three four five six seven") == {}
    # five words: one 5-gram
    assert shares(["one two three four five"], "zero one two three four five six") == {"0": 1}
    assert shares(["one two three four five"], "one two three four six five") == {}
    # "a b c" four times: 12 words, 5 places and 3 different 8-grams, all of which stand in 10 words of it
    assert shares([" ".join("abc" * 4)], " ".join("abc" * 3) + " a") == {"0": 1}


def test_the_share_decides() -> None:
    text = "one two three four five six seven eight nine, I say ten"
    assert LeakIndex([benchmark(TEN)], 0.7).find(text) is None
    leak = LeakIndex([benchmark("other words here", TEN)], 2 / 3).find(text)
    assert leak is not None
    assert (leak.benchmark, leak.item, leak.text) == ("bench", "1", TEN)
    assert leak.share == pytest.approx(2 / 3)


def test_case_punctuation_and_spaces_do_not_hide_a_leak() -> None:
    assert shares([TEN], TEN.upper().replace(" ", ",\n ")) == {"0": 1}
    assert shares(["天空为什么是蓝色的？"], "请问：天空，为什么是蓝色的") == {"0": 1}
    assert shares(["What is 3 + 4?"], "What is 3 - 4?") == {}


def test_short_items_count_only_as_the_whole_text() -> None:
    items = ["Hello", "Hello there!", "?!", "one two three"]
    assert shares(items, "hello...") == {"0": 1}
    assert shares(items, "HELLO there") == {"1": 1}
    assert shares(items, "hello there friend, hello") == {}
    assert shares(items, "?!") == {"2": 1}
    assert shares(items, "") == shares(items, "...") == {}
    assert shares(items, "zero one two three") == {"3": 1}


def test_the_largest_share_comes_first_and_the_earlier_of_two() -> None:
    longer = f"{TEN} eleven twelve"
    assert list(shares([longer, TEN, TEN], f"so {TEN} then")) == ["1", "2", "0"]
    assert shares([longer], f"so {TEN} then") == {"0": pytest.approx(3 / 5)}
    assert LeakIndex([]).find("anything at all") is None


ITEM = st.lists(st.sampled_from("abc"), max_size=14)


def naive(item: list[str], text: list[str]) -> float:
    """The share by the definition."""
    n = min(8, len(item))
    if n < 3:
        return float(bool(item) and item == text)
    grams = {tuple(item[i : i + n]) for i in range(len(item) - n + 1)}
    return sum(any(text[i : i + n] == list(gram) for i in range(len(text))) for gram in grams) / len(grams)


@given(st.lists(ITEM, max_size=6), ITEM)
@settings(max_examples=300, deadline=None)
def test_shares_are_those_of_the_definition(items: list[list[str]], text: list[str]) -> None:
    found = shares([" ".join(item) for item in items], " ".join(text))
    expected = {str(i): share for i, item in enumerate(items) if (share := naive(item, text))}
    if len(text) < 3:  # of equal short items the first is named
        expected = dict(list(expected.items())[:1])
    assert found == {i: pytest.approx(share) for i, share in expected.items()}


def made_up(rng: random.Random, low: int, high: int) -> list[str]:
    return [f"w{rng.randrange(2000)}" for _ in range(rng.randint(low, high))]


def test_planted_leaks_are_found_and_nothing_else() -> None:
    rng = random.Random(2)
    items = [made_up(rng, 6, 60) for _ in range(500)]
    index = LeakIndex([benchmark(*(" ".join(item) for item in items))])
    for i in range(0, 500, 2):
        before, after = made_up(rng, 0, 30), made_up(rng, 0, 30)
        leak = index.find(f"{' '.join(before).upper()}: {', '.join(items[i])}? {' '.join(after)}")
        assert leak is not None
        assert (leak.item, leak.share) == (str(i), 1)
    assert sum(index.find(" ".join(made_up(rng, 8, 60))) is not None for _ in range(3000)) == 0


def test_hostile_texts() -> None:
    long = " ".join(f"w{i}" for i in range(150_000))
    odd = ["\0\0\0", "\ud800 \udfff", "x" * 1_000_000, "🙂" * 300, "﷽" * 50, "\u0301" * 100, " \n"]
    index = LeakIndex([benchmark(*odd, long, TEN)])
    found = [index.find(text) for text in odd]
    assert [leak.item if leak else None for leak in found] == ["0", "1", "2", "3", "4", "5", None]
    assert [leak.item for leak in index.find_all(f"{long} {TEN}")] == ["7", "8"]
    assert index.find(long[:500_000]) is None


# The report


def report_of(texts: list[str], benchmarks: list[Benchmark], candidates: int = 5) -> Contamination:
    rows = [("prompt" if i % 2 else "answer", f"{i:016x}", text) for i, text in enumerate(texts)]
    return leak_report(lambda: iter(rows), benchmarks, 0.7, candidates)


def test_the_report_counts_texts_and_items_of_each_set() -> None:
    a, b = "the first question of the first set", "a question that stands in the second one"
    sets = [benchmark(a, "never asked in any way", a, name="one"), benchmark(b, name="two")]
    texts = ["nothing to see here", f"{a}? {b} | with a bar", b, "the fourth question of the first set"]
    report = report_of(texts, sets)
    assert report.texts == 4
    one, two = report.benchmarks["one"], report.benchmarks["two"]
    assert (one.items, one.items_leaked, one.texts_with_leaks) == (3, 2, 1)
    assert (two.items, two.items_leaked, two.texts_with_leaks) == (1, 1, 2)
    assert [(pair.kind, pair.id, pair.item) for pair in two.leaks] == [
        ("prompt", f"{1:016x}", "0"),
        ("answer", f"{2:016x}", "0"),
    ]
    assert one.candidates[0].ours == texts[3]
    assert one.candidates[0].theirs == a
    assert 0 < one.candidates[0].share < 1
    assert all(pair.ours in (texts[0], texts[3]) for pair in (*one.candidates, *two.candidates))
    shown = show_contamination(report)
    assert (
        shown.splitlines()[0]
        == "4 texts looked at; an item has leaked where 70 % of its n-grams stand in one."
    )
    assert shown.splitlines()[4:6] == ["| one | 3 | 2 | 1 |", "| two | 1 | 1 | 2 |"]
    assert f"| 1.00 | prompt {1:016x}: {a}? {b} \\| with a bar | 0 | {a} |" in shown


def test_the_report_keeps_few_pairs() -> None:
    report = report_of([f"{TEN} and {i}" for i in range(EXAMPLES + 20)], [benchmark(TEN)], candidates=0)
    found = report.benchmarks["bench"]
    assert found.texts_with_leaks == EXAMPLES + 20
    assert len(found.leaks) == EXAMPLES
    assert found.candidates == []


def test_candidates_are_the_most_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [
        benchmark("how long does bread keep", "why is the sky so blue", name="one"),
        benchmark("name a green vegetable", name="two"),
    ]
    texts = ["how long do breads keep", "why are skies blue", "name green vegetables", "xyzzy", "how long"]
    rows = [("prompt", str(i), text) for i, text in enumerate(texts)]
    whole = tfidf_candidates(rows, sets, 2)
    assert whole is not None
    assert [(pair.id, pair.item) for pair in whole["one"]] == [("0", "0"), ("1", "1")]
    assert whole["two"][0].id == "2"
    assert [pair.share for pair in whole["one"]] == sorted(
        (pair.share for pair in whole["one"]), reverse=True
    )
    assert "3" not in {pair.id for pair in (*whole["one"], *whole["two"])}
    monkeypatch.setattr(contamination, "BLOCK", 2)
    monkeypatch.setattr(contamination, "ITEMS", 1)
    again = tfidf_candidates(rows, sets, 2)
    assert again is not None
    assert again["two"] == whole["two"]
    assert [pair.id for pair in again["one"]] == ["0", "1"]


def test_without_scikit_learn_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    report = report_of(["some text of ours"], [benchmark(TEN)])
    assert report.benchmarks["bench"].candidates == []
    assert show_contamination(report).endswith("they need scikit-learn (pip install 'sao[data]').")
