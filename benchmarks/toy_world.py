"""The demo over several seeds and ways of judging: what alignment gains by the oracle's measure.

    python benchmarks/toy_world.py --seeds 0 1 2 3 4 --threads 1 --out runs/toy-world

All ways write as many answers: 2 to each of 4,000 prompts, or 4 to each of 2,000. Ways with as many answers
to a prompt share a run folder, and with it personas, prompts and answers. Interrupted, it goes on where it
stopped; several calls with other seeds may run beside each other. Prints a Markdown table for each way, one
of their means, and one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from sao.config import load_recipe
from sao.method import run
from sao.results import Summary
from sao.store.manifest import package_versions

ALL, FOUR = {"pairs.keep": "all"}, {"responses.n": "4", "personas.n": "2000"}
WAYS: dict[str, dict[str, str]] = {
    "default": {},
    "paper": {"judging.method": "text", "judging.orders": "one", **ALL},
    "one order": {"judging.orders": "one", **ALL},
    "both orders": ALL,
    "n = 4, all": FOUR,
    "n = 4, first_last": {**FOUR, "pairs.rule": "first_last"},
    "n = 4, best_random": {**FOUR, "pairs.rule": "best_random"},
    "n = 4, mu_2sigma": {**FOUR, "pairs.rule": "mu_2sigma"},
    "n = 4, quality_aware": {**FOUR, "pairs.rule": "quality_aware"},
    "n = 4, adjacent": {**FOUR, "pairs.rule": "adjacent"},
    "longer": {"judging.method": "longer", **ALL},
    "random": {"judging.method": "random", **ALL},
    "oracle": {"judging.method": "oracle", **ALL},
}


def row(seed: int, pairs: int, summary: Summary) -> str:
    """One line of the table."""
    oracle, judge, kept = summary.oracle, summary.judge, summary.kept
    low, high = oracle.ci95
    flips = "–" if judge.flip_rate is None else f"{judge.flip_rate:.3f}"
    return (
        f"| {seed} | {oracle.before:.3f} | {oracle.after:.3f} | {oracle.gain:+.3f} | [{low:+.3f}, "
        f"{high:+.3f}] | {oracle.unseen.gain:+.3f} ({oracle.unseen.n}) | {judge.accuracy:.3f} | "
        f"{judge.first_slot_rate:.3f} | {flips} | {pairs} | {kept.label_accuracy:.3f} |"
    )


def means(rows: list[dict[str, Any]], oracle: float | None) -> str:
    """A way's line in the table of means; the interval is Student's, over seeds."""
    gains = [r["gain"] for r in rows]
    gain = statistics.fmean(gains)
    spread = 0.0
    if len(gains) > 1:
        t95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}.get(len(gains), 2.0)
        spread = t95 * statistics.stdev(gains) / len(gains) ** 0.5
    judge, label, pairs, unseen = (
        statistics.fmean(r[key] for r in rows) for key in ("judge", "label", "pairs", "unseen")
    )
    share = "–" if oracle is None else f"{gain / oracle:.2f}"
    labels = f"{judge:.3f} | {label:.3f} | {label - judge:+.3f} |"
    return f"{gain:+.3f} ± {spread:.3f} | {share} | {unseen:+.3f} | {pairs:,.0f} | {labels}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--ways", nargs="+", choices=list(WAYS), default=list(WAYS), metavar="WAY", help=", ".join(WAYS)
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/toy-world"))
    args = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    for way in args.ways:
        heads = "seed | before | after | gain | 95 % interval | gain, unseen (n) "
        heads += "| judge accuracy | first slot | flips | pairs | label accuracy"
        print(f"\n### {way}\n\n| {heads} |\n|---|---|---|---|---|---|---|---|---|---|---|")
        for seed in args.seeds:
            settings = {"seed": str(seed), "engine.threads": str(args.threads), **WAYS[way]}
            summary = run(
                load_recipe("demo", settings), args.out / f"{seed}-{settings.get('responses.n', '2')}"
            )
            pairs = next(row.records for row in summary.funnel if row.stage == "pairs")
            figures = {"judge": summary.judge.accuracy, "label": summary.kept.label_accuracy}
            gain = summary.oracle
            found.setdefault(way, []).append(
                {"seed": seed, "gain": gain.gain, "ci95": gain.ci95, "unseen": gain.unseen.gain,
                 "pairs": pairs, "before": gain.before, "after": gain.after, **figures}
            )  # fmt: skip
            print(row(seed, pairs, summary), flush=True)
    oracle = statistics.fmean(r["gain"] for r in found["oracle"]) if "oracle" in found else None
    heads = "| way | gain | of the oracle's | unseen | pairs | judge accuracy | label accuracy | difference |"
    print(f"\n{heads}")
    print("|---|---|---|---|---|---|---|---|")
    for way, rows in found.items():
        print(f"| {way} | {means(rows, oracle)}")
    mean_gain = {way: statistics.fmean(r["gain"] for r in rows) for way, rows in found.items()}
    print(
        json.dumps(
            {"mean_gain": mean_gain, "runs": found, "threads": args.threads, "versions": package_versions()}
        )
    )


if __name__ == "__main__":
    sys.exit(main())
