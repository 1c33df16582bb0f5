"""Gain against label accuracy (benchmarks/label_accuracy.py): the points of cells made by hand."""

import pytest

from sao.results.base import Rate
from sao.results.sweep import Cell, Measured
from support.repository import load_script

label_accuracy = load_script("benchmarks/label_accuracy.py")
LARGER = {"judging": {"method": "logprob", "engine": {"model": "models/Larger-1B.gguf"}}}


def cell(settings: dict[str, object] | None = None, recipe: dict[str, object] | None = None) -> Cell:
    """A finished cell with a gain of 0.2 by constraints and labels that are right in 80 %."""
    report = Measured(measure="checks", half="report", n=50, before=0.3, after=0.5, mean=0.2, se=0.05)
    choice = report.model_copy(update={"half": "choice", "mean": 0.9})
    row = {
        "settings": settings or {}, "repeats": {}, "fingerprint": "f", "run": "r", "date": "", "seconds": 1.0,
        "measures": [choice, report], "recipe": recipe or {},
        "label_accuracy": Rate(rate=0.8, ci95=(0.7, 0.9), n=100),
    }  # fmt: skip
    return Cell.model_validate(row)


def test_a_point_is_of_the_report_half() -> None:
    point = label_accuracy.point_of(cell())
    assert (point.accuracy, point.pairs, point.gain) == (0.8, 100, 0.2)
    assert point.half_interval == pytest.approx(0.098)
    assert label_accuracy.point_of(cell().model_copy(update={"label_accuracy": None})) is None
    assert label_accuracy.point_of(cell().model_copy(update={"measures": []})) is None


@pytest.mark.parametrize(
    ("settings", "recipe", "labels"),
    [
        ({}, {}, "a program, a share flipped"),
        ({}, {"judging": {"method": "checks", "flipped": 0.1}}, "a program, a share flipped"),
        ({}, {"train": {"lr": 1e-5}}, "self-judged"),
        ({}, LARGER, "judged by Larger-1B"),
        ({"judging.method": "pointwise"}, LARGER, "judged by Larger-1B"),
        ({"judging.method": "random"}, LARGER, "random"),
        ({"judging.method": "longer"}, {}, "longer"),
    ],
)
def test_who_gave_the_labels(settings: dict[str, object], recipe: dict[str, object], labels: str) -> None:
    assert label_accuracy.labels_of(cell(settings, recipe)) == labels
