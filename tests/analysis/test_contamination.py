"""The report on evaluation sets within a run's texts."""

import sys

import pytest

from sao.analysis import contamination
from sao.analysis.contamination import EXAMPLES, contamination_report, tfidf_candidates
from sao.data.contamination_sets import (
    Benchmark,
)
from sao.report.contamination import show_contamination
from sao.results.contamination import Contamination
from support.made_up import TEN, benchmark


def report_of(texts: list[str], benchmarks: list[Benchmark], candidates: int = 5) -> Contamination:
    rows = [("prompt" if i % 2 else "answer", f"{i:016x}", text) for i, text in enumerate(texts)]
    return contamination_report(lambda: iter(rows), benchmarks, 0.7, candidates)


def test_the_report_counts_texts_and_items_of_each_set() -> None:
    a, b = "the first question of the first set", "a question that stands in the second one"
    sets = [benchmark(a, "never asked in any way", a, name="one"), benchmark(b, name="two")]
    texts = ["nothing to see here", f"{a}? {b} | with a bar", b, "the fourth question of the first set"]
    report = report_of(texts, sets)
    assert report.texts == 4
    one, two = report.benchmarks["one"], report.benchmarks["two"]
    assert (one.items, one.contaminated_items, one.contaminated_texts) == (3, 2, 1)
    assert (two.items, two.contaminated_items, two.contaminated_texts) == (1, 1, 2)
    assert [(pair.kind, pair.id, pair.item) for pair in two.overlaps] == [
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
        == "4 texts looked at; one is contaminated by an item where 70 % of the item's n-grams stand in it."
    )
    assert shown.splitlines()[4:6] == ["| one | 3 | 2 | 1 |", "| two | 1 | 1 | 2 |"]
    assert f"| 1.00 | prompt {1:016x}: {a}? {b} \\| with a bar | 0 | {a} |" in shown


def test_the_report_keeps_few_pairs() -> None:
    report = report_of([f"{TEN} and {i}" for i in range(EXAMPLES + 20)], [benchmark(TEN)], candidates=0)
    found = report.benchmarks["bench"]
    assert found.contaminated_texts == EXAMPLES + 20
    assert len(found.overlaps) == EXAMPLES
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
