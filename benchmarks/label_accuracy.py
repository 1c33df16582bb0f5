"""How much a model gains by how often its labels are right: the finished cells of sweeps as points.

    cd benchmarks/results && python ../label_accuracy.py toy_flipped.jsonl smollm2_checks.jsonl \\
        --leave-out 68f98a9a ca4b879a 052aa3cd --plot ../../docs/images/label-accuracy.png

(Left out are a trial, and the two cells by which the learning rate was chosen.)

Each FILE is the cells.jsonl of a sweep, or several of them put together. A point is one trained model: the
share of the pairs it was trained on whose chosen answer is better by gold, and its gain on the half of the
held-out prompts that chose no setting, by constraints of trained kinds, in the toy world by its oracle.
Intervals are over prompts (1.96 standard errors). The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from sao.config.judging import READERS
from sao.results.sweep import Cell, MeasureName
from sao.store.files import read_jsonl
from sao.store.manifest import package_versions

MEASURES: tuple[MeasureName, ...] = ("checks", "oracle")
"""What counts as the gain: the first that a cell has."""
Z95 = 1.96


@dataclass(frozen=True)
class Point:
    """One trained model."""

    fingerprint: str
    """The cell's."""
    labels: str
    """Who gave them."""
    run: str
    """Name of its run folder."""
    accuracy: float
    """Labels that gold agrees with, from 0 to 1."""
    pairs: int
    """Those of which gold sees a difference."""
    measure: MeasureName
    """What the gain is measured by."""
    gain: float
    """After less before."""
    half_interval: float
    """Half of its 95 % interval."""


def points_of(path: Path, leave_out: list[str]) -> list[Point]:
    """The points of a file's finished cells that have gold labels."""
    cells = [Cell.model_validate(row) for row in read_jsonl(path)]
    kept = [cell for cell in cells if not any(cell.fingerprint.startswith(each) for each in leave_out)]
    return [point for cell in kept if (point := point_of(cell)) is not None]


def point_of(cell: Cell) -> Point | None:
    """The point of a cell; None where it failed or has no gold."""
    accuracy = cell.label_accuracy
    figures = {figure.measure: figure for figure in cell.measures if figure.half == "report"}
    for name in MEASURES:
        figure = figures.get(name)
        if figure is None or figure.mean is None or figure.se is None:
            continue
        if accuracy is None or accuracy.rate is None:
            return None
        return Point(
            fingerprint=cell.fingerprint, labels=labels_of(cell), run=cell.run, accuracy=accuracy.rate,
            pairs=accuracy.n, measure=name, gain=figure.mean, half_interval=Z95 * figure.se,
        )  # fmt: skip
    return None


def labels_of(cell: Cell) -> str:
    """Who gave the labels. Lines of before cells kept their recipe are of recipes with a program's labels."""
    recipe = cell.recipe.get("judging", {} if cell.recipe else {"method": "checks"})
    judging = dict(recipe) if isinstance(recipe, dict) else {}
    method = str(cell.settings.get("judging.method", judging.get("method", "logprob")))
    if method in ("checks", "oracle"):
        return "a program, a share flipped"
    if method not in READERS:
        return method
    engine = judging.get("engine")
    model = engine.get("model") if isinstance(engine, dict) else None
    return f"judged by {Path(str(model)).name.removesuffix('.gguf')}" if model else "self-judged"


def plot(files: dict[str, list[Point]], file: Path) -> None:
    """A panel for each file; needs matplotlib."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(files), figsize=(5 * len(files), 4.6), layout="constrained", squeeze=False
    )
    names = sorted({point.labels for points in files.values() for point in points})
    for axes, (title, points) in zip(panels[0], files.items(), strict=True):
        for place, name in enumerate(names):
            those = [point for point in points if point.labels == name]
            if those:
                axes.errorbar(
                    [100 * point.accuracy for point in those], [point.gain for point in those],
                    [point.half_interval for point in those],
                    fmt="o", capsize=2, alpha=0.7, label=name, color=f"C{place}",
                )  # fmt: skip
        measure = "oracle" if points and points[0].measure == "oracle" else "constraints of trained kinds"
        axes.axhline(0, color="gray", linewidth=0.8)
        axes.axvline(50, color="gray", linewidth=0.8, linestyle=":")
        axes.set(title=title, xlabel="labels that are right, %", ylabel=f"gain by {measure}")
        axes.grid(alpha=0.3)
    marks = {
        label: mark
        for axes in panels[0]
        for mark, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(marks.values(), marks.keys(), fontsize="small", loc="outside lower center", ncols=3)
    pyplot.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument(
        "--leave-out", nargs="*", default=[], help="beginnings of fingerprints, such as of trials"
    )
    parser.add_argument("--plot", type=Path, help="a picture (PNG or SVG; needs matplotlib)")
    options = parser.parse_args()
    files = {path.stem: points_of(path, options.leave_out) for path in options.files}
    print("| labels | right | of pairs | gain [95 %] |\n|---|---|---|---|")
    for points in files.values():
        for point in sorted(points, key=lambda point: -point.accuracy):
            ends = [point.gain + sign * point.half_interval for sign in (-1, 1)]
            gain = f"{point.gain:+.3f} [{ends[0]:+.3f}, {ends[1]:+.3f}]"
            print(f"| {point.labels} | {100 * point.accuracy:.0f} % | {point.pairs} | {gain} |")
    if options.plot is not None:
        plot(files, options.plot)
    rows = {name: [asdict(point) for point in points] for name, points in files.items()}
    print(json.dumps({"benchmark": "label_accuracy", "points": rows, "versions": package_versions()}))


if __name__ == "__main__":
    main()
