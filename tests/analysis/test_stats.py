"""What `sao stats` says: figures worked by hand, samples, runs in every state, two of them side by side."""

import json
import math
import random
import sys
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sao.analysis.stats import describe, measures, stats
from sao.analysis.stats.measures import (
    compression,
    distinct_n,
    first_words,
    group_sizes,
    repetition_among,
    smallest,
    spread,
    topics_of,
    vendi,
)
from sao.cli import main
from sao.config import Config, make_config
from sao.data.similarity import Repeats, find_duplicates
from sao.engines.scripted import ScriptedEngine
from sao.errors import StoreError
from sao.method import run
from sao.pipeline.folder import reader
from sao.report.statistics import show_statistics
from sao.results.statistics import (
    Compression,
    Distinct,
    RunStatistics,
    Spread,
    Statistics,
    TextFigures,
    Topics,
)
from sao.sharing.import_pairs import import_pairs
from sao.statistics import wilson
from support.checks import known
from support.errors import raises


def texts_of(texts: list[str]) -> Any:
    def rows() -> Iterator[tuple[str, str]]:
        return ((f"{i:016x}", text) for i, text in enumerate(texts))

    return rows


def config(**sections: Any) -> Config:
    personas = {"source": "builtin:general", "n": 60, "held_out": 5}
    return make_config({"engine": {"name": "scripted"}, "personas": personas, **sections})


def shown(**runs: Statistics) -> str:
    return show_statistics(RunStatistics(runs=runs))


# The figures.


def test_distinct_n_by_hand() -> None:
    texts = first_words(["a b a", "A, b!"])
    assert distinct_n(texts, 1) == pytest.approx(2 / 5)
    assert distinct_n(texts, 2) == pytest.approx(2 / 3)  # ab, ba, ab
    assert distinct_n(texts, 3) == 1.0
    assert distinct_n([["a"]], 2) is None
    assert distinct_n([], 1) is None


def test_distinct_n_stops_at_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "DISTINCT_WORDS", 4)
    assert first_words(["a b", "", "a c d d d d", "e"]) == [["a", "b"], [], ["a", "c"]]
    assert describe(texts_of(["a b c d", "a b c d"]), topics=False).distinct == Distinct(
        distinct_1=1, distinct_2=1, distinct_3=1, words=4
    )


def test_vendi_counts_different_texts() -> None:
    assert vendi(["the same text"] * 7) == pytest.approx(1)
    assert vendi(["one two", "three four", "five six", "seven"]) == pytest.approx(4)
    assert vendi(["one two"] * 2 + ["three four"] * 2) == pytest.approx(2)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert vendi(["x", "x", "x", "y"]) == pytest.approx(math.exp(entropy))
    assert vendi([]) is None
    assert vendi(["", "🙂"]) == pytest.approx(2)


def test_vendi_by_another_implementation() -> None:
    text = pytest.importorskip("sklearn.feature_extraction.text")
    rng = random.Random(1)
    texts = [" ".join(rng.choice("abcdefghijklmnopqrstuvwxyz") * 2 for _ in range(6)) for _ in range(60)]
    vectors = text.TfidfVectorizer().fit_transform(texts).toarray()
    shares = np.linalg.eigvalsh(vectors @ vectors.T / 60)
    assert vendi(texts) == pytest.approx(np.exp(-sum(x * np.log(x) for x in shares if x > 1e-12)), rel=1e-6)
    assert np.allclose(
        measures.cosines([Counter(one.split()) for one in texts], block=7), vectors @ vectors.T
    )


def test_repetition_and_lengths_by_hand() -> None:
    long = "please tell me how long a loaf of rye bread keeps in a cold room"
    found = describe(
        texts_of([long, "What is it?", "what is it", long.replace("rye", "white"), "other words here"])
    )
    assert found.n == 5
    assert found.exact_repetition.rate == pytest.approx(1 / 5)
    assert known(found.near_repetition).rate == pytest.approx(2 / 5)
    assert found.exact_repetition.ci95 == pytest.approx(wilson(1, 5))
    assert found.words == Spread(mean=39 / 5, median=3, p5=3, p95=15)
    assert known(found.characters).mean == pytest.approx((64 + 11 + 10 + 66 + 16) / 5)
    assert all(0 <= measures.rate(0, n).ci95[0] < measures.rate(n, n).ci95[1] <= 1 for n in range(1, 2000))
    assert spread(array("q")) is None
    assert describe(texts_of(["a", "a"]), near=False).near_repetition is None


def test_repetition_among_fewer() -> None:
    assert group_sizes(find_duplicates(lambda: iter(["a", "b", "A", "c", "a!", "b"]), None)) == {
        1: 1,
        2: 1,
        3: 1,
    }
    assert group_sizes(Repeats(array("q"), array("f"))) == {}
    groups = Counter({1: 1, 2: 1, 3: 1})
    assert repetition_among(groups, 6) == pytest.approx(1 / 2)  # all of them: three of six repeat
    assert repetition_among(groups, 1) == pytest.approx(0)
    assert repetition_among(groups, 2) == pytest.approx((1 + 3) / 15 / 2)  # 4 of the 15 pairs are equal texts
    assert repetition_among(groups, 3) == pytest.approx(1 - (1 / 2 + (1 - 4 / 20) + (1 - 1 / 20)) / 3)
    assert repetition_among(groups, 7) is None
    assert repetition_among(Counter({1: 10**6}), 1000) == pytest.approx(0, abs=1e-12)
    texts = [0] * 50 + [1] * 30 + list(range(2, 122))
    drawn = [1 - len(set(random.Random(i).sample(texts, 100))) / 100 for i in range(2000)]
    assert repetition_among(Counter({1: 120, 30: 1, 50: 1}), 100) == pytest.approx(np.mean(drawn), abs=0.002)


FLAT, RANKS, MIXED = np.ones(1000), np.arange(1, 100_001), np.r_[np.ones(20), np.full(200_000, 1e-4)]


@pytest.mark.parametrize(
    "weights", [FLAT, 1 / RANKS, RANKS**-0.5, MIXED], ids=["flat", "zipf", "flatter", "mixed"]
)
def test_the_interval_holds_the_rate_to_be_expected(weights: Any) -> None:
    rng, n = np.random.default_rng(0), 1600
    edges = np.cumsum(weights) / weights.sum()
    repeats = [n - len(np.unique(np.searchsorted(edges, rng.random(n)))) for _ in range(300)]
    expected = np.mean(repeats) / n
    assert np.mean([low <= expected <= high for low, high in (wilson(hits, n) for hits in repeats)]) >= 0.92


def test_repeated_texts_compress_better(monkeypatch: pytest.MonkeyPatch) -> None:
    same = compression(["a line of text"] * 50)
    different = compression([f"{i * 7919 % 10007} {i * 104729}" for i in range(50)])
    assert same.ratio is not None and different.ratio is not None
    assert same.ratio > 5 * different.ratio > 0
    assert same.bytes == 15 * 50 - 1
    assert compression([]) == Compression(ratio=None, bytes=0)
    monkeypatch.setattr(measures, "COMPRESSED_BYTES", 100)
    assert compression(["a line of text"] * 50).bytes == 100


def test_figures_do_not_hang_on_the_order_of_the_rows() -> None:
    pytest.importorskip("sklearn")
    rows = list(texts_of([f"text {i % 30} about thing{i * 37 % 11} and part{i % 7}" for i in range(200)])())
    one = describe(lambda: iter(rows), near=False)
    assert one.topics is not None and one.topics.clusters
    assert one == describe(lambda: iter(rows[::-1]), near=False)
    assert smallest(rows, 5, 0) == smallest(rows[::-1], 5, 0) != smallest(rows, 5, 1)
    assert len(smallest(rows, 999, 0)) == 200


def test_topics_are_found() -> None:
    pytest.importorskip("sklearn")
    kinds = ["bread oven dough flour yeast", "violin chord tune melody sonata", "rocket orbit planet comet "
                                                                                "moon",
             "goal match team coach league", "paint brush canvas easel frame"]  # fmt: skip
    texts = [
        " ".join(kinds[i % 5].split()[k:] + kinds[i % 5].split()[:k])
        for i in range(300)
        for k in (i // 5 % 5,)
    ]
    found = topics_of(texts, 0)
    assert found is not None
    assert found.texts == 300
    assert sum(topic.rate or 0 for topic in found.clusters) == pytest.approx(1)
    for topic in found.clusters:
        assert any(set(topic.words) <= set(kind.split()) for kind in kinds)
        assert topic.ci95 == pytest.approx(wilson(round(300 * known(topic.rate)), 300))
    for few in ([], texts[:3], ["the same"] * 20, ["", "🙂"] * 20):
        assert topics_of(few, 0) == Topics(texts=len(few), clusters=[])


def test_hostile_texts_are_counted() -> None:
    texts = [
        "",
        "\0",
        "\ud800 half",
        "x" * 100_000,
        "a\nb",
        "日本語のテキスト",
        "🙂",
        "\x1b[31mred",
        "e\u0301" * 500,
    ]
    found = describe(texts_of(texts * 4))
    assert found.n == 36
    assert found.exact_repetition.rate == pytest.approx(0.75)
    assert known(found.characters).p95 == 100_000
    assert TextFigures.model_validate_json(found.model_dump_json()) == found
    whole = Statistics(prompts=found, sources={}, licences={}, funnel=[], templates={})
    text = shown(**{"a" * 300: whole, "b" * 300: whole})
    assert "\x1b" not in text
    assert max(map(len, text[: text.index("\n\na")].splitlines())) <= 120
    nothing = describe(texts_of([]))
    assert nothing.exact_repetition.rate is None
    assert nothing.vendi.score is None
    assert nothing.words is None
    assert TextFigures.model_validate_json(nothing.model_dump_json()) == nothing


# Runs.


def reply_with(thing: int, misses: int = 0) -> ScriptedEngine:
    """An engine that writes so many different prompts, and leaves the marker out of one in `misses`."""

    def reply(messages: Any, seed: int, sampling: Any) -> str:
        marker = "" if misses and seed % misses == 0 else "Prompt: "
        return f"{marker}Explain thing number {seed % thing} to me, please."

    return ScriptedEngine(reply=reply)


def test_a_run_with_filters_and_answers(tmp_path: Path) -> None:
    c = config(filters={"duplicates": "exact"})
    run(c, tmp_path, until="pairs", engine=reply_with(40))
    found = stats(reader(c, tmp_path, ScriptedEngine()))
    kept, filtered = found.kept_prompts, found.funnel[1]
    assert kept is not None and found.personas is not None and found.answers is not None
    assert (found.personas.n, known(found.prompts).n) == (65, 65)
    assert kept.n == filtered.records <= 40
    assert known(found.prompts).exact_repetition.rate == pytest.approx(filtered.dropped / 65)
    assert kept.exact_repetition.rate == 0
    assert found.answers.near_repetition is None
    assert [known(texts).topics is not None for texts in (found.prompts, kept, found.answers)] == [
        True,
        False,
        False,
    ]
    assert found.sources == {"model": "builtin:world", "personas": "builtin:general"}
    assert found.licences["personas"] == "CC0-1.0"
    text = shown(a=found)
    assert text == shown(a=Statistics.model_validate_json(found.model_dump_json()))
    assert "prompts, after the filters" in text
    assert f"on {kept.n} texts" in next(
        x for x in text[text.index("after the") :].splitlines() if "Vendi" in x
    )
    assert f"filtered     {kept.n} kept, {filtered.dropped} dropped (" in text


def test_prompts_by_template(tmp_path: Path) -> None:
    c = config(
        prompts={"mix": {"prompt": 1, "prompt_code": 2}}, filters={"duplicates": "exact"}, max_drop_share=1
    )
    run(c, tmp_path, until="prompts", engine=reply_with(40, misses=3))
    found = stats(reader(c, tmp_path, ScriptedEngine()))
    for what, total in (
        ("asked", 65),
        ("written", known(found.prompts).n),
        ("kept", known(found.kept_prompts).n),
    ):
        assert sum(getattr(counts, what) for counts in found.templates.values()) == total
    assert found.templates["prompt_code"].asked > found.templates["prompt"].asked > 5
    assert f"template     prompt: {found.templates['prompt'].asked} asked" in shown(a=found)


def test_two_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    run(config(), Path(a), until="pairs")
    run(config(personas={"source": "none", "n": 30, "held_out": 5}), Path(b), until="prompts")
    assert main(["stats", a, b, "--json"]) == 0
    out = capsys.readouterr().out.splitlines()
    both = RunStatistics.model_validate_json(out[-1]).runs
    assert list(both) == [a, b]
    assert both[b].answers is None
    assert both[b].personas is None  # nobody: their empty texts are no personas
    row = next(line for line in out if line.strip().startswith("exact repetition"))
    assert (row.split()[2], row.split()[-1]) == ("0.00", "–")
    assert sum("compare" in line for line in out) == 2
    assert max(map(len, out[: out.index(a)])) <= 120
    assert "compare" not in shown(a=both[a], b=both[a])


def test_a_run_of_given_pairs(tmp_path: Path) -> None:
    rows = [{"prompt": f"ask {i % 4}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(20)]
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = config(pairs={"source": str(source), "licence": "MIT"})
    run(given, tmp_path / "given", until="prompts")
    found = stats(reader(given, tmp_path / "given"))
    assert found.sources["pairs"] == str(source)
    text = shown(given=found)
    assert "licence: MIT" in text
    assert "trains on given pairs" in text
    import_pairs(given, tmp_path / "imported")
    manifest = json.loads((tmp_path / "imported" / "manifest.json").read_text())
    found = stats(reader(make_config(manifest["config"]), tmp_path / "imported"))
    assert (known(found.prompts).n, known(found.answers).n) == (20, 40)
    assert known(found.prompts).exact_repetition.rate == pytest.approx(16 / 20)
    assert found.sources == {"pairs": "imported"}
    assert found.personas is None


def test_an_unfinished_run_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Stop(Exception):  # noqa: N818
        pass

    def reply(*args: Any) -> str:
        raise Stop

    with pytest.raises(Stop):
        run(config(), tmp_path, until="prompts", engine=ScriptedEngine(reply=reply))
    with raises(StoreError, key="run folder", match="sao prompts RECIPE --out"):
        stats(reader(config(), tmp_path, ScriptedEngine()))
    assert main(["stats", str(tmp_path), str(tmp_path), str(tmp_path)]) == 1
    assert "two side by side" in capsys.readouterr().err


def test_without_scikit_learn_the_rest_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config(), tmp_path, until="prompts")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    found = stats(reader(config(), tmp_path))
    assert known(found.prompts).topics is None
    assert known(known(found.prompts).vendi.score) > 1
    text = shown(a=found)
    assert "pip install 'sao[data]'" in text
    assert "Vendi score" in text
