"""The results of a sweep: one `Cell` for each line of cells.jsonl, and the table over them (`Sweep`), which
`sao sweep --json` prints."""

from __future__ import annotations

from typing import Literal

from pydantic import JsonValue

from sao.results.base import Interval, Rate, Result
from sao.results.checks import ChecksOutcome
from sao.results.rounds import RoundResult

MeasureName = Literal["checks", "checks_unseen", "oracle", "win_rate", "words"]
Half = Literal["choice", "report"]
Pair = tuple[float, float]
"""A value before and after training."""


class PromptScores(Result):
    """What one held-out prompt says of a cell; a line of FOLDER/scores/FINGERPRINT.jsonl."""

    id: str
    """Id of the prompt."""
    half: Half
    """The half that it belongs to, by a hash of its text."""
    win_rate: float | None = None
    """Points of the trained model by the run's judge, from 0 to 1; null where no verdict is readable."""
    oracle: Pair | None = None
    """The oracle's scores of the answers before and after training; null outside the toy world."""
    checks: Pair | None = None
    """Share of the prompt's constraints that the answers keep, where all are of trained kinds."""
    checks_unseen: Pair | None = None
    """The same, where all are of kinds that no training prompt has."""
    words: Pair
    """Words of the answers."""


class Measured(Result):
    """One measure on one half of a cell's held-out prompts."""

    measure: MeasureName
    """checks, checks_unseen: constraints kept; oracle: the toy world's score; win_rate: against the base by
    the run's judge (CIRCULAR); words: length."""
    half: Half
    """The half of the prompts."""
    n: int
    """Prompts that have the measure."""
    before: float | None = None
    """Mean of the base's answers; null for win_rate."""
    after: float | None = None
    """Mean of the trained model's answers; null for win_rate."""
    mean: float | None = None
    """The win rate, or the mean of after less before, paired by prompt; null where n is 0."""
    se: float | None = None
    """Standard error of that mean over the prompts; null where n is below 2."""


class Cell(Result):
    """One cell of a sweep: a recipe that was run, or that failed."""

    kind: Literal["cell"] = "cell"
    """What this result is."""
    version: Literal[1] = 1
    """Version of the schema."""
    settings: dict[str, JsonValue]
    """What differs from the recipe of the sweep, by key; empty for the recipe itself."""
    repeats: dict[str, JsonValue]
    """The seeds of this repeat, by key."""
    fingerprint: str
    """Hash of all that the cell's records depend on: the whole recipe with its defaults, models, templates
    and sources by what they hold, and the run folder."""
    run: str
    """Name of the run folder below the sweep's."""
    error: str | None = None
    """Why the cell failed; null where it is finished."""
    measures: list[Measured] = []
    """All measures on both halves of the held-out prompts."""
    judge: str | None = None
    """Who judged the win rate; null where the cell failed."""
    rounds: list[RoundResult] = []
    """The rounds, where the cell has several; its figures are those of the best by the choice half."""
    measured: int | None = None
    """That round; null for a single round."""
    best: int | None = None
    """The best by all held-out prompts, whose model the run gave back; null for a single round."""
    stopped_by: list[str] = []
    """What ended the run before its last round, a sentence for each rule."""
    recipe: dict[str, JsonValue] = {}
    """The cell's recipe: what in it is no default."""
    checks: ChecksOutcome | None = None
    """Constraints by kind, which kinds do not count, repetition, brevity and the base's log-probability; null
    without constraints, and where the figures are not those of the round that the run gave back."""
    kept_pairs: int | None = None
    """Pairs that it trained on; null where pairs were given."""
    kept_share: float | None = None
    """Kept pairs over the possible ones."""
    label_accuracy: Rate | None = None
    """Kept pairs whose chosen answer is better by gold (constraints, else the oracle), where gold sees a
    difference; null without gold."""
    judge_accuracy: Rate | None = None
    """Decided verdicts of the first judge that gold agrees with, where it sees a difference; null without
    gold."""
    versions: dict[str, str | None] = {}
    """Versions of Python and of the packages."""
    git: str | None = None
    """Revision of SAO's checkout; null where it is installed otherwise."""
    date: str
    """When the cell ended (UTC, ISO 8601)."""
    seconds: float
    """Wall-clock seconds of the call that finished it: what cells before it had made is not in them."""


class Estimate(Result):
    """A mean over repeats with its 95 % interval."""

    value: float
    """Mean over the repeats of their means over prompts."""
    ci95: Interval | None
    """95 % interval over prompts and seeds (`Sweep.formula`); null where one prompt, or equal values without
    bounds, allow none."""
    prompts: int
    """Prompts that it is over."""
    seeds: int
    """Repeats that it is over; with 1 the interval counts prompts only."""


class Difference(Estimate):
    """A setting less the base, repeat by repeat."""

    paired: bool
    """Whether by prompt as well: false where the two have no prompts in common."""


class RowMeasure(Result):
    """One measure of one setting."""

    measure: MeasureName
    """Which one (see `Measured`)."""
    choice: float | None
    """Mean on the choice half; null where it has no such prompts."""
    before: float | None
    """Mean of the base model's answers on the report half; null for win_rate."""
    after: float | None
    """Mean of the trained models' answers there; null for win_rate."""
    report: Estimate | None
    """The measure on the report half."""
    difference: Difference | None
    """Less that of the base setting, on the report half; null for the base itself."""


class SweepRow(Result):
    """One setting, over all its repeats."""

    settings: dict[str, JsonValue]
    """What differs from the recipe; empty for the recipe itself."""
    label: str
    """The same in words."""
    is_base: bool
    """Whether the others are compared with this one."""
    chosen: bool
    """Whether it is the best by the choice half."""
    done: int
    """Finished cells."""
    failed: int
    """Failed ones."""
    missing: int
    """Cells that have not been run yet."""
    errors: list[str]
    """Why cells failed, each reason once."""
    measures: list[RowMeasure]
    """What the finished cells measured."""
    kept_pairs: float | None
    """Mean number of pairs that they trained on."""
    label_accuracy: Rate | None
    """Accuracy of the kept labels against gold: the mean over the repeats, of rate and of interval; n is that
    of the first."""
    judge_accuracy: Rate | None
    """Accuracy of the first judge against gold, likewise."""
    beyond_brevity: Estimate | None = None
    """Gain on constraints of trained kinds less what brevity alone earns, over all held-out prompts
    (`Cell.checks`): the mean over the repeats, of value and of interval (over prompts); prompts is that of
    the first. Null without constraints."""
    repetition: Pair | None = None
    """Mean share of an answer's 4-grams that repeat an earlier one, before and after, likewise."""


class Sweep(Result):
    """The table of a sweep."""

    kind: Literal["sweep"] = "sweep"
    """What this result is."""
    version: Literal[1] = 1
    """Version of the schema."""
    model: str
    """The recipe's model."""
    recipe: dict[str, JsonValue]
    """What the recipe has for the keys that the sweep changes."""
    measure: MeasureName | None
    """The main measure, by which the best setting is chosen; null where no cell is finished."""
    circular: bool
    """Whether that is the verdict of the judge that was trained on."""
    repeats: dict[str, list[JsonValue]]
    """The seeds by key, with which each setting is repeated."""
    rows: list[SweepRow]
    """The settings in the order of the sweep."""
    chosen: str | None
    """Label of the best setting by the choice half; null where none has all its cells."""
    cells: int
    """Cells of this sweep."""
    done: int
    """Those that are finished."""
    failed: int
    """Those that failed."""
    left_out: int
    """Lines of cells.jsonl that belong to other recipes and are not in the table."""
    formula: str
    """How the intervals are computed."""
    notes: list[str]
    """What a reader of the table should know."""
