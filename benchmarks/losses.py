"""The losses beside each other on the toy world, each with a learning rate and β of its own: is the
paper's comparison fair?

    python benchmarks/losses.py --out runs/losses --threads 1

First the search on seeds that are not reported (--tuning): every learning rate at the loss's first β, then
other βs at the best rate; where the best lies at the upper end, the next one beyond it too. The mean oracle
gain decides. Then the seeds that are reported (--seeds), each loss with its choice. All share one run folder
a seed, so they are trained on the same pairs and measured on the same prompts. Interrupted, it goes on where
it stopped. Prints Markdown tables, and one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sao.config import load_recipe
from sao.errors import SAOError
from sao.method import run
from sao.store.manifest import package_versions

# The first βs to try; every learning rate goes with the first.
BETAS = {
    "simpo": [2.5, 10.0],
    "dpo_norm": [2.5, 10.0],
    "dpo": [0.1, 0.5],
    "ipo": [0.1, 0.5],
    "kto": [0.1, 0.5],
    "cpo": [0.1, 0.5],
    "orpo": [0.5, 2.0],
}
RATES = [2e-4, 4e-4, 8e-4, 1.6e-3]
BEYOND = 3
"""How often a search goes on beyond its upper end."""


def settings_of(loss: str, beta: float, lr: float) -> dict[str, str]:
    """The recipe's keys; SimPO keeps the demo's ratio of γ to β. One epoch, as in the paper, on pairs kept at
    p ≥ 0.73."""
    margin = {"train.gamma": str(0.8 * beta)} if loss == "simpo" else {"train.gamma": "null"}
    fixed = {"train.epochs": "1", "pairs.min_p": "0.73"}
    return {"train.loss": loss, "train.beta": str(beta), "train.lr": str(lr), **fixed, **margin}


def measure(loss: str, beta: float, lr: float, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One training of one seed: the oracle's measure, words an answer, and what became of the
    log-probabilities."""
    settings = {"seed": str(seed), "engine.threads": str(args.threads), **settings_of(loss, beta, lr)}
    out = args.out / str(seed)
    try:
        summary = run(load_recipe("demo", settings), out)
    except SAOError as error:  # a collapsed model may give no usable answers: that is a result too
        print(f"{loss} β {beta:g} lr {lr:g} seed {seed}: {error}", file=sys.stderr)
        return {"seed": seed, "failed": str(error)}
    metrics = next(row.metrics for row in summary.funnel if row.stage == "train")
    oracle, held = summary.oracle, summary.heldout
    assert metrics is not None
    assert oracle is not None
    assert held is not None
    print(f"{loss} β {beta:g} lr {lr:g} seed {seed}: gain {oracle.gain:+.3f}", file=sys.stderr, flush=True)
    return {
        "seed": seed,
        "before": oracle.before,
        "after": oracle.after,
        "gain": oracle.gain,
        "ci95": oracle.ci95,
        "unseen": oracle.unseen.gain,
        "win_rate": held.win_rate,
        "words": [held.words_base, held.words_tuned],
        "chosen": metrics["logps/chosen"],
        "margin": metrics["logps/chosen"] - metrics["logps/rejected"],
    }


def mean_gain(rows: list[dict[str, Any]]) -> float:
    """The mean over seeds; a failed training counts as losing everything."""
    return statistics.fmean(row.get("gain", -1.0) for row in rows)


def choose(loss: str, args: argparse.Namespace) -> tuple[float, float, list[dict[str, Any]]]:
    """The β and learning rate with the best mean gain on the tuning seeds, and all that was tried."""
    tried: list[dict[str, Any]] = []

    def attempt(beta: float, lr: float) -> float:
        for known in tried:
            if (known["beta"], known["lr"]) == (beta, lr):
                return float(known["gain"])
        gain = mean_gain([measure(loss, beta, lr, seed, args) for seed in args.tuning])
        tried.append({"beta": beta, "lr": lr, "gain": gain})
        return gain

    def climb(values: list[float], factor: float, gain_at: Callable[[float], float]) -> float:
        """The best value; while that is the largest, a still larger one is tried."""
        gains = {value: gain_at(value) for value in values}
        for _ in range(BEYOND):
            if max(gains, key=lambda v: gains[v]) != max(gains):
                break
            gains[factor * max(gains)] = gain_at(factor * max(gains))
        return max(gains, key=lambda v: gains[v])

    lr = climb(RATES, 2, lambda rate: attempt(BETAS[loss][0], rate))
    beta = climb(BETAS[loss], 4, lambda value: attempt(value, lr))
    return beta, lr, tried


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--losses", nargs="+", choices=list(BETAS), default=list(BETAS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--tuning", type=int, nargs="+", default=[100, 101])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/losses"))
    args = parser.parse_args()
    if set(args.seeds) & set(args.tuning):
        parser.error("a seed is used both for choosing and for reporting")
    chosen = {loss: choose(loss, args) for loss in args.losses}
    print(
        "| loss | β | learning rate | gain on the tuning seeds of every setting tried (β, rate: gain) "
        "|\n|---|---|---|---|"
    )
    for loss, (beta, lr, tried) in chosen.items():
        every = "; ".join(f"{t['beta']:g}, {t['lr']:.2g}: {t['gain']:+.3f}" for t in tried)
        print(f"| {loss} | {beta:g} | {lr:.2g} | {every} |", flush=True)
    found: dict[str, list[dict[str, Any]]] = {loss: [] for loss in args.losses}
    for seed in args.seeds:
        for loss, (beta, lr, _) in chosen.items():
            found[loss].append(measure(loss, beta, lr, seed, args))
    print(
        "\n| loss | gain of each seed | mean | least lower bound (95 %) | unseen | words | ā chosen | margin "
        "|"
    )
    print("|---|---|---|---|---|---|---|---|")
    for loss, rows in found.items():
        good = [row for row in rows if "gain" in row]
        mean = {
            key: statistics.fmean(row[key] for row in good) for key in ("gain", "unseen", "chosen", "margin")
        }
        words = [statistics.fmean(row["words"][i] for row in good) for i in (0, 1)]
        gains = ", ".join(f"{row['gain']:+.3f}" if "gain" in row else "failed" for row in rows)
        print(
            f"| {loss} | {gains} | {mean['gain']:+.3f} | {min(row['ci95'][0] for row in good):+.3f} | "
            f"{mean['unseen']:+.3f} | {words[0]:.1f} → {words[1]:.1f} | {mean['chosen']:.2f} | "
            f"{mean['margin']:.2f} |"
        )
    settings = {loss: {"beta": beta, "lr": lr, "tried": tried} for loss, (beta, lr, tried) in chosen.items()}
    print(
        json.dumps(
            {"settings": settings, "runs": found, "threads": args.threads, "versions": package_versions()}
        )
    )


if __name__ == "__main__":
    sys.exit(main())
