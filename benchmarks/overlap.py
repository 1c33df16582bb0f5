"""What judging a prompt as soon as its answers are there could save at most: the slots that stand idle while
the last answers are written.

    python benchmarks/overlap.py [--prompts 1000 60000] [--replicas 1 8 32]

A simulation: two answers to each prompt, their lengths log-normal (median 300 tokens, sigma 0.7, at most
1,536), 256 slots in each replica, 15 ms a step; a slot takes the next answer when its last has ended. The
time of all verdicts together is `--judging` times that of a perfectly filled engine's answers. Judging in
between can save no more than the idle slots; `saved` is that, as a share of answering and judging. The
median of five seeds. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import statistics

SLOTS, STEP, MEDIAN, SIGMA, MOST = 256, 0.015, 300, 0.7, 1536


def saved(prompts: int, replicas: int, judging: float, seed: int) -> float:
    """The idle share of answering and judging one after the other."""
    draw = random.Random(seed)
    times = [STEP * min(MOST, max(1, MEDIAN * draw.lognormvariate(0, SIGMA))) for _ in range(2 * prompts)]
    free = [0.0] * (replicas * SLOTS)
    for time in times:
        heapq.heapreplace(free, free[0] + time)
    answering, filled = max(free), sum(times) / len(free)
    return (answering - filled) / (answering + judging * filled)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, nargs="+", default=[1000, 10_000, 60_000])
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--judging", type=float, default=2.0)
    options = parser.parse_args()
    found = {
        f"{prompts} prompts, {replicas} replicas": round(
            statistics.median(saved(prompts, replicas, options.judging, seed) for seed in range(5)), 4
        )
        for prompts in options.prompts
        for replicas in options.replicas
    }
    for name, share in found.items():
        print(f"{name}: {100 * share:.1f} %")
    print(json.dumps({"benchmark": "overlap", "saved": found, "judging": options.judging}))


if __name__ == "__main__":
    main()
