"""The scores of sao.evaluation against those that AlpacaEval 2 published, from its own annotation files.

    PYTHONPATH=src python benchmarks/alpaca_eval.py PATH

PATH is a clone of https://github.com/tatsu-lab/alpaca_eval (its data is CC BY-NC and not part of this
repository), with two files of the hub data set tatsu-lab/alpaca_eval put into it: instruction_difficulty.csv
and df_gamed.csv. For each model with
annotations by weighted_alpaca_eval_gpt4_turbo and a line in the leaderboard three figures are set beside the
published ones: the win rate (equal to 1e-6), the length-controlled one from the published weights (within
0.02), and from weights fitted here (0.2). What does not fit is listed. Prints one JSON line last; exits with
1 where a check fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from sao.errors import DataError, SAOError
from sao.evaluation import alpaca_files
from sao.evaluation.length_control import OFFICIAL_BASELINE, GamedRow, length_controlled, win_rate

ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
LEADERBOARD = f"src/alpaca_eval/leaderboards/data_AlpacaEval_2/{ANNOTATOR}_leaderboard.csv"
WEIGHTS = f"src/alpaca_eval/metrics/weights/{ANNOTATOR}/length_controlled_v1/baseline_{OFFICIAL_BASELINE}.csv"
OUTPUTS = f"results/{OFFICIAL_BASELINE}/model_outputs.json"
TOLERANCE = {"win_rate": 1e-6, "from_weights": 0.02, "refit": 0.2}


@dataclass(frozen=True)
class Published:
    """What is fixed for all models: the set's instructions in their order, their difficulty, the gamed
    baseline."""

    order: list[str]
    difficulty: dict[str, float]
    gamed: list[GamedRow]


def find(root: Path, name: str) -> str:
    """A file of the clone. Raises DataError where it is not there."""
    path = root / name
    if not path.is_file():
        raise DataError(
            f"{path}: not there. Give a clone of github.com/tatsu-lab/alpaca_eval with "
            "instruction_difficulty.csv and df_gamed.csv of the hub data set tatsu-lab/alpaca_eval in it"
        )
    return str(path)


def read_published(root: Path) -> Published:
    """The set, its difficulty and its gamed rows."""
    order = [output.instruction for output in alpaca_files.read_outputs(find(root, OUTPUTS))]
    difficulty = alpaca_files.read_difficulty(find(root, "instruction_difficulty.csv"), order)
    return Published(order, difficulty, alpaca_files.read_gamed(find(root, "df_gamed.csv"), order))


def errors_of(
    root: Path,
    model: str,
    line: dict[str, float | str | None],
    published: Published,
    weights: dict[str, float],
) -> dict[str, float | bool]:
    """Our three figures less the published ones, and whether the annotations stand in the set's order."""
    annotations = alpaca_files.read_annotations(find(root, f"results/{model}/{ANNOTATOR}/annotations.json"))
    found: dict[str, float | bool] = {
        "win_rate": alpaca_files.standing_of(annotations).win_rate - float(line["win_rate"] or "nan"),
        "in_order": [a.instruction for a in annotations] == published.order,
    }
    lc = line.get("length_controlled_winrate")
    if isinstance(lc, float):
        rows = [annotation.row for annotation in annotations]
        fitted = length_controlled(
            rows, published.difficulty, published.gamed, order=published.order, penalty=None, resamples=2
        )
        found["refit"] = fitted.score - lc
        if model in weights:
            found["from_weights"] = weights[model] - lc
    return found


def check(root: Path, only: str | None) -> dict[str, object]:
    """All models against the leaderboard."""
    start = time.perf_counter()
    lines = alpaca_files.read_leaderboard(find(root, LEADERBOARD))
    published = read_published(root)
    weighted = alpaca_files.read_weights(find(root, WEIGHTS))
    scores = {
        name: win_rate(w, [published.difficulty[text] for text in published.order])
        for name, w in weighted.items()
    }
    found = {}
    for model, line in lines.items():
        if only in (None, model) and (root / f"results/{model}/{ANNOTATOR}/annotations.json").is_file():
            found[model] = errors_of(root, model, line, published, scores)
            print(model, found[model], flush=True)
    if not found:
        raise DataError(
            f"{root}: no annotations by {ANNOTATOR} of a model of the leaderboard. Give the whole clone"
        )
    result: dict[str, object] = {
        "models": len(found),
        "of_leaderboard": len(lines),
        "annotations_in_other_order": sum(not errors["in_order"] for errors in found.values()),
        "seconds": round(time.perf_counter() - start, 1),
    }
    for name, tolerance in TOLERANCE.items():
        off = {model: abs(errors[name]) for model, errors in found.items() if name in errors}
        worst = sorted(off.items(), key=lambda item: -item[1])
        result[name] = {
            "checked": len(off),
            "tolerance": tolerance,
            "largest_error": worst[0][1] if worst else None,
            "outside": {model: error for model, error in worst if not error <= tolerance},
        }
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "path", type=Path, help="a clone of tatsu-lab/alpaca_eval, with the two files of its data set"
    )
    parser.add_argument("--model", help="only this one")
    args = parser.parse_args()
    try:
        result = check(args.path, args.model)
    except SAOError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return int(any(result[name]["outside"] for name in TOLERANCE))  # type: ignore[index]


if __name__ == "__main__":
    sys.exit(main())
