"""AlpacaEval's files: written, read back, and as others wrote them."""

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sao.errors import DataError
from sao.evaluation import alpaca_files
from sao.evaluation.alpaca_files import Annotation, Output
from support.errors import raises

# AlpacaEval's files


def annotations() -> list[Annotation]:
    """Four verdicts, one unparseable, on texts that need escaping."""
    return [
        Annotation(instruction=f'say "é" {i}\n', output_1="1" * 10, generator_1="base",
        output_2="2" * (4 + i),
                   generator_2="ours", annotator="judge", p=p)
        for i, p in enumerate((1.0, 0.25, 0.5, None))
    ]  # fmt: skip


def test_files_come_back_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "annotations.json"
    file.write_text(alpaca_files.annotations_json(annotations()))
    assert alpaca_files.read_annotations(str(file)) == annotations()
    assert [row["preference"] for row in json.loads(file.read_text())] == [2.0, 1.25, 1.5, None]
    outputs = [Output(instruction="q\ud800", output="", generator="ours")]
    file = tmp_path / "model_outputs.json"
    file.write_text(alpaca_files.outputs_json(outputs))
    assert alpaca_files.read_outputs(str(file)) == outputs
    assert json.loads(file.read_text())[0].keys() == {"instruction", "output", "generator", "dataset"}


def test_a_leaderboard_by_hand(tmp_path: Path) -> None:
    line = alpaca_files.standing_of(annotations())
    assert line.win_rate == pytest.approx(100 * 1.75 / 3)
    assert line.standard_error == pytest.approx(100 * np.std([1, 0.25, 0.5], ddof=1) / math.sqrt(3))
    assert (line.n_wins, line.n_wins_base, line.n_draws, line.n_total) == (1, 1, 1, 3)
    assert line.discrete_win_rate == 50.0 and line.avg_length == 5 and line.mode == "community"
    text = alpaca_files.leaderboard_csv({"ours": line, "better": replace(line, win_rate=90.0)})
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0] == [
        "", "win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "n_total", "discrete_win_rate",
        "mode",
        "avg_length", "length_controlled_winrate", "lc_standard_error",
    ]  # fmt: skip
    assert [row[0] for row in rows[1:]] == ["better", "ours"] and rows[1][-1] == ""
    (tmp_path / "leaderboard.csv").write_text(text)
    back = alpaca_files.read_leaderboard(str(tmp_path / "leaderboard.csv"))
    assert back["ours"]["win_rate"] == line.win_rate and back["ours"]["mode"] == "community"
    assert back["ours"]["lc_standard_error"] is None
    with raises(DataError, key="verdicts"):
        alpaca_files.standing_of(annotations()[3:])


def test_preferences_as_others_wrote_them(tmp_path: Path) -> None:
    file = tmp_path / "annotations.json"
    row = json.loads(alpaca_files.annotations_json(annotations()))[0]
    values = [0, 0.0, 1, 2, 1.5, None, math.nan, -1, 3]
    file.write_text(json.dumps([row | {"preference": value, "raw_completion": {"x": 1}} for value in values]))
    assert [a.p for a in alpaca_files.read_annotations(str(file))] == [
        0.5,
        0.5,
        0.0,
        1.0,
        0.5,
        None,
        None,
        None,
        None,
    ]
    file.write_text(json.dumps([row | {"preference": "2"}]))
    with raises(DataError, key="annotations", match="item 0.*preference"):
        alpaca_files.read_annotations(str(file))
    file.write_text(json.dumps([{"instruction": "q", "preference": 1}]))
    with raises(DataError, key="annotations", match="output_1"):
        alpaca_files.read_annotations(str(file))


@pytest.mark.parametrize(
    ("value", "kind"), [(math.nan, "NaN"), (None, "null"), (3, "a number"), (True, "true"), (["a"], "a list")]
)
def test_texts_of_alpaca_eval_that_are_none_are_refused(tmp_path: Path, value: Any, kind: str) -> None:
    file = tmp_path / "x.json"
    output = json.loads(alpaca_files.outputs_json([Output(instruction="q", output="a", generator="g")]))[0]
    verdict = json.loads(alpaca_files.annotations_json(annotations()))[0]
    readers: list[tuple[Any, dict[str, Any], tuple[str, ...]]] = [
        (alpaca_files.read_outputs, output, ("instruction", "output", "generator", "dataset")),
        (alpaca_files.read_annotations, verdict,
         ("instruction", "output_1", "generator_1", "output_2", "generator_2", "annotator", "dataset")),
    ]  # fmt: skip
    for read, row, keys in readers:
        for key in keys:
            file.write_text(json.dumps([row, row | {key: value}]))
            if value is None and key in ("annotator", "dataset"):
                assert getattr(read(str(file))[1], key) == {"annotator": "", "dataset": "sao"}[key]
                continue
            with raises(DataError, key="annotations", match=f"item 1: no text under {key}, but {kind} "):
                read(str(file))


def test_tables_hold_numbers_and_no_nan(tmp_path: Path) -> None:
    file, row = tmp_path / "x.csv", ",instruction_difficulty\n0,0.5\n"
    for cell, kind in (
        ("nan", "NaN"),
        ("NaN", "NaN"),
        ("inf", "'inf'"),
        ("1e999", "'1e999'"),
        ("", "''"),
        ("x", "'x'"),
    ):
        file.write_text(f"{row}1,{cell}\n")
        with raises(
            DataError, key="annotations", match=f"line 3: no number under instruction_difficulty, but {kind}"
        ):
            alpaca_files.read_difficulty(str(file), ["x", "y"])
        file.write_text(f"{row}{cell},0.5\n")
        with raises(
            DataError, key="annotations", match=f"line 3: no number under the first column, but {kind}"
        ):
            alpaca_files.read_difficulty(str(file), ["x", "y"])
        file.write_text(f"index,std_delta_len,preference\n0,0.1,{cell}\n")
        with raises(DataError, key="annotations", match=f"line 2: no number under preference, but {kind}"):
            alpaca_files.read_gamed(str(file), ["x"])
        file.write_text(f",{','.join(alpaca_files.WEIGHTS)}\nours,1,{cell},2\n")
        with raises(
            DataError, key="annotations", match=f"line 2: no number under instruction_difficulty, but {kind}"
        ):
            alpaca_files.read_weights(str(file))
    file.write_text("instruction_difficulty\n0.5\n")
    with raises(DataError, key="--difficulty", match="line 2"):
        alpaca_files.read_difficulty(str(file), ["x"])
    file.write_text(",win_rate,mode\nours,nan,community\n")
    with raises(DataError, key="annotations", match="line 2.*win_rate, but NaN"):
        alpaca_files.read_leaderboard(str(file))
    (tmp_path / "x.jsonl").write_text('{"index": true, "std_delta_len": 1, "preference": 1}\n')
    with raises(DataError, key="annotations", match="index, but true"):
        alpaca_files.read_gamed(str(tmp_path / "x.jsonl"), ["x"])


def test_difficulty_by_row_becomes_difficulty_by_text(tmp_path: Path) -> None:
    file = tmp_path / "instruction_difficulty.csv"
    file.write_text(",instruction_difficulty\n0,0.5\n1,-1.0\n2,2.5\n")
    assert alpaca_files.read_difficulty(str(file), ["x", "y", "x"]) == {"x": 1.5, "y": -1.0}
    with raises(DataError, key="--difficulty", match="row 2 of a set of 2"):
        alpaca_files.read_difficulty(str(file), ["x", "y"])
    with raises(DataError, key="--difficulty", match="1 of the 4"):
        alpaca_files.read_difficulty(str(file), ["x", "y", "z", "w"])
