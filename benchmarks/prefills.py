"""What a prefill does to a judge's verdicts: verdict_prob of the verdict's tokens, taste for the first slot,
spread of margins.

    python benchmarks/prefills.py RUN [--pairs 40] [--engine vllm] [PREFILL …]

RUN is a run folder with answers; its own model judges them by the default template in both orders. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path

from sao.engines import open_engine
from sao.pipeline.folder import recorded
from sao.records import Judgment
from sao.stages import judging

PREFILLS = (
    "", "The better answer is answer ", "Answer ", "Ranking: ", "The best answer is number ",
    "I choose answer ",
)  # fmt: skip


def figures(found: list[Judgment]) -> dict[str, float]:
    """Means over verdicts that come in both orders; bias and margin in nats."""
    odds: dict[frozenset[str], list[float]] = {}
    for verdict in found:
        p = float(verdict.p_first or 0.5)
        odds.setdefault(frozenset((verdict.first_id, verdict.second_id)), []).append(math.log(p / (1 - p)))
    both = [pair for pair in odds.values() if len(pair) == 2]
    return {
        "verdict_prob": round(statistics.mean(float(v.verdict_prob or 0) for v in found), 3),
        "first_slot": round(statistics.mean(float(v.p_first or 0) > 0.5 for v in found), 3),
        "bias": round(statistics.mean((a + b) / 2 for a, b in both), 3),
        "margin_sd": round(statistics.pstdev((a - b) / 2 for a, b in both), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("prefills", nargs="*", default=PREFILLS)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--engine", default="auto")
    args = parser.parse_args()
    run = recorded(args.run)
    groups = [(p.id, p.conversation, answers) for p, answers in run.answered() if len(answers) == 2][
        : args.pairs
    ]
    engine = open_engine(run.config.engine.model_copy(update={"name": args.engine}), run.config.model)
    table = {}
    for prefill in args.prefills:
        config = run.config.judging.model_copy(update={"prefill": prefill, "min_verdict_prob": 0.0})
        found = judging.judge(judging.ordered_pairs(groups, 2, "prefills", 2), engine, config, set())
        table[prefill] = figures([v for v in found if isinstance(v, Judgment)])
        print(f"{prefill!r:32} {table[prefill]}", flush=True)
    engine.close()
    print(json.dumps({"run": str(args.run), "pairs": len(groups), "engine": engine.name, "prefills": table}))


if __name__ == "__main__":
    main()
