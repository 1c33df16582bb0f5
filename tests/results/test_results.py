"""The results as records: JSON that reads back, schemas that stand in docs/schemas, nothing that JSON
cannot hold."""

import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import ValidationError

from sao.results import RESULTS, Contamination, Rate, Result
from sao.results.base import StageCounts
from sao.results.contamination import SetContamination, TextBesideItem
from sao.results.evaluation import EffectSize
from support.repository import load_script


@pytest.fixture
def script() -> ModuleType:
    return load_script("scripts/schemas.py")


def test_the_schemas_are_those_in_the_docs(script: ModuleType) -> None:
    names = script.changed()
    assert names == [], (
        f"The schema of {', '.join(names)} is another one. If JSON that was written before can no longer be "
        "read, raise `version` in sao.results; then: python scripts/schemas.py --write"
    )


def test_a_changed_schema_is_seen(script: ModuleType, tmp_path: Path) -> None:
    for name, text in script.schemas().items():
        (tmp_path / name).write_text(text, "utf-8")
    assert script.changed(tmp_path) == []
    (tmp_path / "audit.json").write_text("{}")
    (tmp_path / "plan.json").unlink()
    (tmp_path / "old.json").write_text("{}")
    assert script.changed(tmp_path) == ["audit.json", "old.json", "plan.json"]


def test_every_field_is_documented_and_every_result_has_a_kind_and_a_version() -> None:
    models: set[type[Result]] = set()

    def collect(parent: type[Result]) -> None:
        for model in parent.__subclasses__():
            models.add(model)
            collect(model)

    collect(Result)
    assert len(models) > 40
    for model in models:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
    kinds = [model.model_fields["kind"].default for model in RESULTS]
    assert kinds == [
        "summary", "audit", "statistics", "contamination", "evaluation", "plan", "preview", "status",
        "export", "import", "environment", "sweep", "cell",
    ]  # fmt: skip
    assert all(model.model_fields["version"].default >= 1 for model in RESULTS)


def contamination(**changes: Any) -> Contamination:
    pair = TextBesideItem(
        kind="prompt", id="1", ours="half \ud800", benchmark="b", item="0", theirs="日本", share=1.0
    )
    found = SetContamination(
        source="",
        digest="d",
        items=1,
        contaminated_items=1,
        contaminated_texts=1,
        overlaps=[pair],
        candidates=[],
    )
    values: dict[str, Any] = {"texts": 1, "max_overlap": 0.7, "benchmarks": {"b": found}}
    return Contamination(**values | changes)


def test_json_reads_back() -> None:
    report = contamination()
    text = report.model_dump_json()
    assert Contamination.model_validate_json(text) == report
    assert json.loads(text)["benchmarks"]["b"]["overlaps"][0]["ours"] == "half ?"
    assert json.loads(text)["kind"] == "contamination"
    for change in ({"version": 2}, {"kind": "audit"}, {"more": 1}):
        with pytest.raises(ValidationError):
            Contamination.model_validate(json.loads(text) | change)
    with pytest.raises(ValidationError):
        report.texts = 2


def test_json_has_no_nan() -> None:
    for value in (math.nan, math.inf, -math.inf):
        assert Rate(rate=value, ci95=(0.0, 1.0), n=0).rate is None
        effect = EffectSize(value=0.0, ci95=(0.0, 0.0), p=1.0, n=1, detectable=value)
        assert json.loads(effect.model_dump_json())["detectable"] is None
        with pytest.raises(ValidationError):
            EffectSize(value=value, ci95=(0.0, 0.0), p=1.0, n=1, detectable=None)  # it must be a number
        with pytest.raises(ValidationError):
            Rate(rate=0.5, ci95=(value, 1.0), n=0)


def test_stage_counts_are_those_of_the_folder() -> None:
    rows = [
        {"stage": "pairs", "records": 2, "dropped": 1, "reasons": {"tie": 1}},
        {
            "stage": "train",
            "records": 2,
            "dropped": 0,
            "reasons": {},
            "steps": 4,
            "metrics": {"loss": math.nan},
        },
    ]
    pairs, train = (StageCounts.model_validate(row) for row in rows)
    assert (pairs.stage, pairs.reasons, pairs.metrics) == ("pairs", {"tie": 1}, None)
    assert (train.steps, train.metrics) == (4, {"loss": None})


def test_results_load_without_torch() -> None:
    code = (
        "import sys, sao.results, sao.tables;print([m for m in ('torch', 'transformers', 'numpy', 'pyarrow', "
        "'yaml') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
