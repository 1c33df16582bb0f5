"""Pairs of answers whose better one is known: both finished, and one keeps more of its prompt's constraints.

    python benchmarks/gold_pairs.py RUN --pairs 300 --out gold.jsonl

RUN is a run folder with answers to checkable prompts (`sao judge RECIPE --prompts.checkable 1
--judging.method checks`). Each line of the file has `prompt`, `first`, `second`, `gold` (first or second),
the `kinds` of constraints in which the two differ, and both shares of constraints kept. The pairs and their
sides are drawn by seed, one of each prompt as far as that goes. The last line printed is JSON.
benchmarks/ladder.py reads the file.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from sao import checks
from sao.pipeline.folder import recorded
from sao.pipeline.reader import Reader
from sao.records import Prompt, Response


def candidates(run: Reader, rng: random.Random) -> Iterator[list[dict[str, Any]]]:
    """For each checkable prompt the pairs of its answers that differ, in random order."""
    if run.checks is None:
        raise SystemExit(f"{run.root}: no prompt has constraints. Make the run with --prompts.checkable 1")
    for prompt, answers in run.answered():
        finished = [a for a in answers if a.finish_reason == "stop"]
        pairs = [pair for a, b in combinations(finished, 2) if (pair := gold_pair(prompt, a, b, rng))]
        rng.shuffle(pairs)
        yield pairs


def gold_pair(prompt: Prompt, a: Response, b: Response, rng: random.Random) -> dict[str, Any] | None:
    """Two answers with what is known of them, None where one is as good as the other."""
    first, second = rng.sample([a, b], 2)
    scores = [checks.score(answer.text, prompt.checks) for answer in (first, second)]
    if scores[0] is None or scores[1] is None or scores[0] == scores[1]:
        return None
    kinds = [
        constraint.kind
        for constraint in prompt.checks
        if checks.passes(first.text, constraint) != checks.passes(second.text, constraint)
    ]
    return {
        "prompt": prompt.conversation,
        "first": first.text,
        "second": second.text,
        "gold": "first" if scores[0] > scores[1] else "second",
        "kinds": kinds,
        "scores": scores,
        "prompt_id": prompt.id,
    }


def draw(by_prompt: list[list[dict[str, Any]]], n: int, rng: random.Random) -> list[dict[str, Any]]:
    """n pairs: one of each prompt in random order, then a second of each, and so on."""
    rng.shuffle(by_prompt)
    rounds = range(max(map(len, by_prompt), default=0))
    return [pairs[k] for k in rounds for pairs in by_prompt if k < len(pairs)][:n]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    by_prompt = list(candidates(recorded(args.run), rng))
    pairs = draw(by_prompt, args.pairs, rng)
    args.out.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs), "utf-8")
    found = {
        "pairs": len(pairs),
        "prompts": len({pair["prompt_id"] for pair in pairs}),
        "possible": sum(map(len, by_prompt)),
        "first_is_better": sum(pair["gold"] == "first" for pair in pairs),
        "longer_is_better": sum(
            (len(pair["first"]) > len(pair["second"])) == (pair["gold"] == "first") for pair in pairs
        ),
        "kinds": dict(Counter(kind for pair in pairs for kind in pair["kinds"]).most_common()),
    }
    print(json.dumps({"run": str(args.run), "out": str(args.out), "seed": args.seed, **found}))


if __name__ == "__main__":
    main()
