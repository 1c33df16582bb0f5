"""What `sao stats` says: figures worked by hand, samples, two runs side by side."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sao import stats as module
from sao.cli import main
from sao.config import make_config
from sao.engines.scripted import ScriptedEngine
from sao.errors import StoreError
from sao.folder import RunFolder
from sao.pipeline import run
from sao.stats import compression, describe, distinct_n, show_stats, smallest, spread, stats, topics_of, vendi


def texts_of(texts: list[str]) -> Any:
    def rows() -> Iterator[tuple[str, str]]:
        return ((f"{i:016x}", text) for i, text in enumerate(texts))

    return rows


def test_distinct_n_by_hand() -> None:
    texts = ["a b a", "a b"]
    assert distinct_n(texts, 1) == pytest.approx(2 / 5)
    assert distinct_n(texts, 2) == pytest.approx(2 / 3)  # ab, ba, ab
    assert distinct_n(texts, 3) == 1.0
    assert distinct_n(["a"], 2) is None
    assert distinct_n([], 1) is None


def test_distinct_n_stops_at_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DISTINCT_WORDS", 4)
    assert distinct_n(["a b", "a c d d d d"], 1) == pytest.approx(3 / 4)


def test_vendi_counts_different_texts() -> None:
    assert vendi(["the same text"] * 7) == pytest.approx(1)
    assert vendi(["one two", "three four", "five six", "seven"]) == pytest.approx(4)
    assert vendi(["one two"] * 2 + ["three four"] * 2) == pytest.approx(2)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert vendi(["x", "x", "x", "y"]) == pytest.approx(math.exp(entropy))
    assert vendi([]) is None
    assert vendi(["", "🙂"]) == pytest.approx(2)


def test_repetition_and_lengths_by_hand() -> None:
    long = "please tell me how long a loaf of rye bread keeps in a cold room"
    found = describe(texts_of([long, "What is it?", "what is it", long.replace("rye", "white"), "other words here"]))
    assert found["n"] == 5
    assert found["exact_repetition"]["rate"] == pytest.approx(1 / 5)
    assert found["near_repetition"]["rate"] == pytest.approx(2 / 5)
    assert found["words"]["mean"] == pytest.approx((15 + 3 + 3 + 15 + 3) / 5)
    assert found["words"]["median"] == 3
    low, high = found["exact_repetition"]["ci95"]
    assert low < 0.2 < high
    assert spread([])["mean"] != spread([])["mean"]  # no number


def test_repeated_texts_compress_better() -> None:
    same, different = (
        compression(["a line of text"] * 50),
        compression([f"{i * 7919 % 10007} {i * 104729}" for i in range(50)]),
    )
    assert same is not None
    assert different is not None
    assert same > 5 * different > 0
    assert compression([]) is None


def test_figures_do_not_hang_on_the_order_of_the_rows() -> None:
    texts = [f"text {i % 30} about thing {i * 37 % 11}" for i in range(200)]
    rows = list(texts_of(texts)())
    one, other = describe(lambda: iter(rows), topics=False), describe(lambda: iter(rows[::-1]), topics=False)
    for key in ("distinct", "compression", "vendi", "words", "exact_repetition"):
        assert one[key] == other[key]
    assert smallest(rows, 5, 0) == smallest(rows[::-1], 5, 0) != smallest(rows, 5, 1)


def test_topics_are_found() -> None:
    pytest.importorskip("sklearn")
    kinds = ["bread oven dough flour yeast", "violin chord tune melody sonata", "rocket orbit planet comet moon",
             "goal match team coach league", "paint brush canvas easel frame"]  # fmt: skip
    texts = [" ".join(kinds[i % 5].split()[k:] + kinds[i % 5].split()[:k]) for i in range(300) for k in (i // 5 % 5,)]
    found = topics_of(texts, 0)
    assert found
    assert sum(topic["share"] for topic in found) == pytest.approx(1)
    for topic in found:
        assert any(set(topic["words"]) <= set(kind.split()) for kind in kinds)
    assert topics_of(texts[:3], 0) == []
    assert topics_of(["the same"] * 20, 0) == []


def test_hostile_texts_are_counted() -> None:
    found = describe(texts_of(["", "\0", "\ud800 half", "x" * 100_000, "a\nb", "日本語のテキスト", "🙂"]))
    assert found["n"] == 7
    json.dumps(found)


def config(**sections: Any) -> Any:
    personas = {"source": "builtin:general", "n": 60, "held_out": 5}
    return make_config({"engine": {"name": "scripted"}, "personas": personas, **sections})


def test_a_run_and_two_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(config(), tmp_path / "a", until="pairs")
    run(config(filters={"duplicates": "none"}), tmp_path / "b", until="prompts")
    found = stats(RunFolder(config(), tmp_path / "a"))
    assert (found["prompts"]["n"], found["personas"]["n"], found["answers"]["n"]) == (65, 65, 120)
    assert found["source"] == "builtin:general"
    assert found["licences"]["personas"] == "CC0-1.0"
    assert main(["stats", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
    out = capsys.readouterr().out.splitlines()
    both = json.loads(out[-1])
    assert set(both) == {str(tmp_path / "a"), str(tmp_path / "b")}
    assert "answers" not in both[str(tmp_path / "b")]
    row = next(line for line in out if line.strip().startswith("exact repetition"))
    assert row.count("%") == 2
    assert max(len(line) for line in out[:-1]) <= 140


def test_an_unfinished_run_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Stop(Exception):  # noqa: N818
        pass

    def reply(*args: Any) -> str:
        raise Stop

    with pytest.raises(Stop):
        run(config(), tmp_path, until="prompts", engine=ScriptedEngine(reply=reply))
    with pytest.raises(StoreError, match="not finished"):
        stats(RunFolder(config(), tmp_path, ScriptedEngine()))
    assert main(["stats", str(tmp_path), str(tmp_path), str(tmp_path)]) == 1
    assert "two side by side" in capsys.readouterr().err


def test_without_scikit_learn_the_rest_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    found = describe(texts_of([f"text {i}" for i in range(20)]))
    assert found["topics"] is None
    assert found["vendi"] is not None
    whole = {"prompts": found, "source": "x", "licences": {}, "funnel": [], "samples": {
        "distinct_words": 1, "compressed": 1, "topics": 1, "vendi": 1}}  # fmt: skip
    assert "pip install 'sao[data]'" in show_stats([("a", whole)])
