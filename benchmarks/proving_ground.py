"""The demo over several seeds and ways of judging: what alignment gains by the oracle's measure.

    python benchmarks/proving_ground.py --seeds 0 1 2 3 4 --ways self random oracle paper --out runs/proving-ground

One run folder a seed: the ways differ in their judge, so they share personas, prompts and answers. Interrupted, it goes on where
it stopped. Prints a Markdown table for each way, and one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from sao.config import load_recipe
from sao.manifest import package_versions
from sao.pipeline import run

WAYS = {
    "self": {},
    "random": {"judging.method": "random"},
    "oracle": {"judging.method": "oracle"},
    "paper": {"judging.method": "text", "judging.orders": "one", "pairs.keep": "all"},
}


def row(seed: int, summary: dict[str, Any]) -> str:
    """One line of the table."""
    o, judge, kept = summary["oracle"], summary["judge"], summary["kept"]
    low, high = o["ci95"]
    flips = "–" if judge["flip_rate"] is None else f"{judge['flip_rate']:.3f}"
    return (
        f"| {seed} | {o['before']:.3f} | {o['after']:.3f} | {o['gain']:+.3f} | [{low:+.3f}, {high:+.3f}] "
        f"| {o['unseen']['gain']:+.3f} ({o['unseen']['n']}) "
        f"| {judge['accuracy']:.3f} | {judge['first_slot_rate']:.3f} | {flips} "
        f"| {kept['share']:.3f} | {kept['label_accuracy']:.3f} | {summary['seconds']:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--ways", nargs="+", choices=sorted(WAYS), default=["self", "random"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/proving-ground"))
    args = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    for way in args.ways:
        heads = "seed | before | after | gain | 95 % interval | gain, unseen (n) "
        heads += "| judge right | first slot | flips | kept | labels right | s"
        print(f"\n### {way}\n\n| {heads} |")
        print("|---|---|---|---|---|---|---|---|---|---|---|---|")
        for seed in args.seeds:
            settings = {"seed": str(seed), "engine.threads": str(args.threads), **WAYS[way]}
            summary = run(load_recipe("demo", settings), args.out / str(seed))
            found.setdefault(way, []).append({"seed": seed, **summary["oracle"], "seconds": summary["seconds"]})
            print(row(seed, summary), flush=True)
    means = {way: sum(r["gain"] for r in rows) / len(rows) for way, rows in found.items()}
    print(json.dumps({"mean_gain": means, "runs": found, "threads": args.threads, "versions": package_versions()}))


if __name__ == "__main__":
    sys.exit(main())
