"""AlpacaEval's files: outputs, annotations and leaderboards as text that alpaca_eval 0.6.6 reads, and its own
files read back.

Preferences: alpaca_eval gives 1 where output_1 (the baseline's) wins, 2 where output_2 (the model's) does,
1.5 for a tie (older files: 0), anything between, and null where the verdict was unparseable. Here `p` is the
preference for the model, from 0 to 1.

alpaca_eval keys the difficulty of an instruction, and the rows of its gamed baseline, by the row's number in
the official set. Here they are keyed by the instruction's text, so the set's instructions must be given in
their order; of an instruction that stands there twice the mean difficulty is taken.

    python -c "from sao.evaluation.alpaca_files import read_annotations;
    print(len(read_annotations('annotations.json')))"
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sao.data.readers import kind_of, read_rows
from sao.errors import DataError
from sao.evaluation.length_control import GamedRow, LengthControlled, Row, Weights

DATASET = "sao"
WEIGHTS = ("np.tanh(std_delta_len)", "instruction_difficulty", "not_gamed_baseline.astype(float)")
"""The columns of a weights file: length, difficulty, model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One answer, as in model_outputs.json."""

    instruction: str
    output: str
    generator: str
    dataset: str = DATASET


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """One verdict, as in annotations.json; `p` is the preference for the model, None where unparseable."""

    instruction: str
    output_1: str
    generator_1: str
    output_2: str
    generator_2: str
    annotator: str
    p: float | None
    dataset: str = DATASET

    @property
    def row(self) -> Row:
        """What the length-controlled win rate needs of it; lengths in characters, as alpaca_eval counts
        them."""
        return Row(
            instruction=self.instruction,
            p=self.p,
            length=len(self.output_2),
            baseline_length=len(self.output_1),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One line of leaderboard.csv, all rates in %. Errors are standard errors; None where alpaca_eval leaves
    a cell empty.

    `win_rate` is the mean preference, `discrete_win_rate` counts wins and half the ties. alpaca_eval's own
    `lc_standard_error` is the spread of the fitted preferences and says nothing about the score's; what is
    written here is the bootstrap's.
    """

    win_rate: float
    standard_error: float | None
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int
    discrete_win_rate: float
    mode: str
    avg_length: int
    length_controlled_winrate: float | None = None
    lc_standard_error: float | None = None


def outputs_json(outputs: Iterable[Output]) -> str:
    """The text of model_outputs.json."""
    return _json([asdict(output) for output in outputs])


def annotations_json(annotations: Iterable[Annotation]) -> str:
    """The text of annotations.json."""
    rows = []
    for annotation in annotations:
        row = asdict(annotation)
        p = row.pop("p")
        rows.append(row | {"preference": None if p is None else 1 + p})
    return _json(rows)


def leaderboard_csv(standings: Mapping[str, Standing]) -> str:
    """The text of leaderboard.csv, the best model first (by the length-controlled rate where there is
    one)."""

    def rank(item: tuple[str, Standing]) -> tuple[float, str]:
        rate = item[1].length_controlled_winrate
        return -(item[1].win_rate if rate is None else rate), item[0]

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["", *Standing.__slots__])
    for name, standing in sorted(standings.items(), key=rank):
        writer.writerow([name, *("" if value is None else value for value in asdict(standing).values())])
    return text.getvalue()


def standing_of(
    annotations: Sequence[Annotation], controlled: LengthControlled | None = None, mode: str = "community"
) -> Standing:
    """A model's line of the leaderboard, as alpaca_eval counts it: unparseable verdicts are left out of all
    but the mean length.

    `controlled` only where `sao.evaluation.length_control.score_name` says LC: the file has no other name for
    the column. Raises DataError where no verdict is readable.
    """
    points = sorted(annotation.p for annotation in annotations if annotation.p is not None)
    if not points:
        raise DataError(
            "no readable verdict, so there is no win rate. Look at the judge's answers", key="verdicts"
        )
    n, mean = len(points), math.fsum(points) / len(points)
    wins, losses = sum(p > 0.5 for p in points), sum(p < 0.5 for p in points)
    variance = math.fsum((p - mean) ** 2 for p in points) / (n - 1) if n > 1 else None
    return Standing(
        win_rate=100 * mean,
        standard_error=None if variance is None else 100 * math.sqrt(variance / n),
        n_wins=wins,
        n_wins_base=losses,
        n_draws=n - wins - losses,
        n_total=n,
        discrete_win_rate=100 * (wins + (n - wins - losses) / 2) / n,
        mode=mode,
        avg_length=sum(len(annotation.output_2) for annotation in annotations) // len(annotations),
        length_controlled_winrate=None if controlled is None else controlled.score,
        lc_standard_error=None if controlled is None else controlled.error,
    )


def read_outputs(source: str) -> list[Output]:
    """The answers of a model_outputs.json. Raises DataError where a row lacks a key, or holds no text under
    it."""
    return [
        Output(
            instruction=_text(row, "instruction", place),
            output=_text(row, "output", place),
            generator=_text(row, "generator", place),
            dataset=_text(row, "dataset", place, DATASET),
        )
        for place, row in _rows(source, ["instruction", "output", "generator"], "answers")
    ]


def read_annotations(source: str) -> list[Annotation]:
    """The verdicts of an annotations.json, whatever else stands in its rows. Raises DataError where a row
    lacks a key, or holds no text under it."""
    keys = ("instruction", "output_1", "generator_1", "output_2", "generator_2")
    return [
        Annotation(
            **{key: _text(row, key, place) for key in keys},
            annotator=_text(row, "annotator", place, ""),
            p=_preference(row, place),
            dataset=_text(row, "dataset", place, DATASET),
        )
        for place, row in _rows(source, [*keys, "preference"], "annotations")
    ]


def _preference(row: Mapping[str, Any], place: str) -> float | None:
    """The preference for the model; None for null, NaN and what lies outside 1 to 2, but for the old 0 that
    means a tie."""
    value = row.get("preference", ...)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(
            f"{place}: no number under preference{_instead(row, 'preference')}. Give an annotations.json as "
            "alpaca_eval writes it",
            key="annotations",
        )
    if value == 0:
        return 0.5
    return value - 1 if 1 <= value <= 2 else None


def read_leaderboard(source: str) -> dict[str, dict[str, float | str | None]]:
    """The lines of a leaderboard.csv by model: numbers where there are numbers, None for empty cells. NaN
    raises DataError."""
    return {
        _text(row, "", place): {key: _cell(value, key, place) for key, value in row.items() if key}
        for place, row in _table(source, [""])
    }


def read_weights(source: str) -> dict[str, Weights]:
    """The published weights of each model (baseline_*.csv of metrics/weights)."""
    return {
        _text(row, "", place): Weights(
            **dict(zip(("length", "difficulty", "model"), _numbers(row, WEIGHTS, place), strict=True))
        )
        for place, row in _table(source, ["", *WEIGHTS])
    }


def read_difficulty(source: str, order: Sequence[str]) -> dict[str, float]:
    """The difficulty by instruction, from instruction_difficulty.csv (row number, difficulty).

    Args:
        source: The file.
        order: The official set's instructions in their order (those of the baseline's model_outputs.json).

    Raises:
        DataError: Where the file is not of a set of this size.

    """
    found: dict[str, list[float]] = {}
    for place, row in _table(source, []):
        if len(row) < 2:
            raise DataError(
                f"{place}: one column only. Give alpaca_eval's own file (row number, difficulty)",
                key="--difficulty",
            )
        number, value = _numbers(row, list(row)[:2], place)
        found.setdefault(_instruction(order, number, place), []).append(value)
    if missing := [text for text in order if text not in found]:
        raise DataError(
            f"{source}: no difficulty of {len(missing)} of the {len(order)} instructions. Give the set's own "
            "file",
            key="--difficulty",
        )
    return {text: math.fsum(values) / len(values) for text, values in found.items()}


def read_gamed(source: str, order: Sequence[str]) -> list[GamedRow]:
    """The rows of the gamed baseline, from df_gamed.csv; `order` as for `read_difficulty`."""
    rows = []
    for place, row in _table(source, ["index", "std_delta_len", "preference"]):
        number, delta, p = _numbers(row, ("index", "std_delta_len", "preference"), place)
        rows.append(GamedRow(instruction=_instruction(order, number, place), p=p, delta=delta))
    return rows


def _instruction(order: Sequence[str], number: float, place: str) -> str:
    if number != int(number) or not 0 <= number < len(order):
        raise DataError(
            f"{place}: row {number:g} of a set of {len(order)} instructions. Give the files of one and the "
            "same set",
            key="--difficulty",
        )
    return order[int(number)]


def _json(rows: list[dict[str, Any]]) -> str:
    return json.dumps(rows, indent=2, allow_nan=False) + "\n"


def _rows(source: str, columns: Sequence[str], what: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    for place, row in read_rows(source, columns, what=what, option="@REVISION after its name"):
        if not isinstance(row, dict):
            raise DataError(
                f"{place}: no object but a {type(row).__name__}. Give {what} as alpaca_eval writes them",
                key="annotations",
            )
        yield place, row


def _table(source: str, columns: Sequence[str]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """The lines of a CSV file, which must have these columns."""
    for place, row in _rows(source, columns, "a table"):
        if missing := [column for column in columns if column not in row]:
            raise DataError(
                f"{place}: no column {missing[0]!r} (it holds: {', '.join(row)}). Give alpaca_eval's own "
                "file",
                key="annotations",
            )
        yield place, row


def _text(row: Mapping[str, Any], key: str, place: str, default: str | None = None) -> str:
    """The text under a key; `default`, where one is given, in the place of null and of a key that is not
    there."""
    value = row.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise DataError(
            f"{place}: no text under {key or 'the first column'}{_instead(row, key)} (it holds: "
            f"{', '.join(row)}). Give a file as alpaca_eval writes it",
            key="annotations",
        )
    return value


def _instead(row: Mapping[str, Any], key: str) -> str:
    """What stands under a key in the place of what is wanted, for messages."""
    return f", but {kind_of(row[key])}" if key in row else ""


def _numbers(row: Mapping[str, Any], columns: Sequence[str], place: str) -> list[float]:
    """The numbers under these columns, none of them NaN or infinite."""
    found = []
    for column in columns:
        try:
            number = math.nan if isinstance(row[column], bool) else float(row[column])
        except (ValueError, TypeError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            kind = repr(row[column][:40]) if isinstance(row[column], str) else kind_of(row[column])
            raise DataError(
                f"{place}: no number under {column or 'the first column'}, but {kind}. Give alpaca_eval's "
                "own file",
                key="annotations",
            )
        found.append(number)
    return found


def _cell(value: Any, key: str, place: str) -> float | str | None:
    """A cell of a table: its number, None where it is empty, else its text."""
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (ValueError, TypeError):
        return str(value)
    if not math.isfinite(number):
        raise DataError(
            f"{place}: no number under {key}, but {kind_of(number)}. Give alpaca_eval's own file",
            key="annotations",
        )
    return number
