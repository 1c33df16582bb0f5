"""The rounds of finished runs as JSON lines: what round.json says of each, its constraints, and how many
of its labels are right.

    python benchmarks/run_rounds.py RUN [RUN …] --out FILE

One line for each round; the last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sao.analysis.summary import summarise
from sao.pipeline.folder import recorded
from sao.store.files import dumps
from sao.store.manifest import package_versions

MEASURED = ("judgments", "pairs", "train", "heldout_tuned", "base_logprobs")


def line_of(root: Path, number: int) -> dict[str, object]:
    """What one round came to."""
    run = recorded(root, number)
    found = summarise(run, list(MEASURED), False)
    return {
        "run": root.name,
        "round": json.loads((root / f"round-{number}" / "round.json").read_text("utf-8")),
        "checks": None if found.checks is None else found.checks.model_dump(mode="json"),
        "label_accuracy": None if found.kept is None else found.kept.label_accuracy,
        "judge_accuracy": None if found.judge is None else found.judge.accuracy,
        "recipe": run.round.recipe.model_dump(mode="json", exclude_defaults=True),
        "versions": package_versions(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    lines = []
    for root in options.runs:
        rounds = len(list(root.glob("round-*/round.json")))
        lines += [line_of(root, number) for number in range(1, rounds + 1)]
    options.out.write_text("".join(f"{dumps(line)}\n" for line in lines), encoding="utf-8")
    print(dumps({"benchmark": "run_rounds", "rounds": len(lines)}))


if __name__ == "__main__":
    main()
