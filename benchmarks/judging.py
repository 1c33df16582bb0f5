"""What a kept pair costs: tokens through the model and wall time, against the paper's sampled text verdict.

    PYTHONPATH=src python benchmarks/judging.py --prompts 800 --repeats 3

The shipped model answers prompts of its world twice, and four times half as many. Then each way judges the
same answers with the built-in engine and builds its pairs; the ways take turns, `--repeats` times. `tokens`
are those read and written for a kept pair, without any cache; `right` is the share of right labels by the
oracle. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Any

from sao.config import EngineConfig, JudgingConfig, PairsConfig, ResponsesConfig
from sao.engines import ChoiceRequest, Choices, Completion, Failure, Request
from sao.engines.transformers import TransformersEngine
from sao.models.locate import WORLD_MODEL
from sao.records import Judgment, PreferencePair, Prompt, Response, make_id
from sao.stages import judging, pairs, responses
from sao.toy_world.language import sample_task
from sao.toy_world.oracle import score

Answered = list[tuple[Prompt, list[Response]]]
TEXT = {"method": "text", "orders": "one", "max_tokens": 8}
WAYS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "paper": (2, TEXT, {"keep": "all"}),
    "one order": (2, {"orders": "one"}, {"keep": "all"}),
    "default": (2, {}, {}),
    "n = 4, all pairs": (4, {}, {}),
    "n = 4, ring of 2": (4, {"comparisons_per_answer": 2}, {}),
    "n = 4, first_last": (4, {}, {"rule": "first_last"}),
}
"""Answers to a prompt, how they are judged, which pairs are kept; the first is what the others are measured
against."""


class Counting:
    """The engine, and how many tokens went through it."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.engine, self.tokens = engine, 0
        self.name, self.identity, self.has_logprobs, self.usage = engine.name, engine.identity, True, None

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion | Failure]:
        for done in self.engine.generate(self._counted(requests)):
            assert isinstance(done, Completion)
            self.tokens += len(done.token_ids or ())
            yield done

    def choice_logprobs(self, requests: Iterable[ChoiceRequest]) -> Iterator[Choices | Failure]:
        return self.engine.choice_logprobs(self._counted(requests))

    def close(self) -> None:
        self.engine.close()

    def _counted(self, requests: Iterable[Any]) -> Iterator[Any]:
        for request in requests:
            self.tokens += len(self.engine.chat.prompt_ids(request.messages))
            yield request


def answered(engine: TransformersEngine, prompts: int, n: int) -> Answered:
    """Prompts of the world with n answers each."""
    rng = random.Random(3)
    asked = []
    while len(asked) < prompts:
        text = sample_task(rng).text
        asked.append(Prompt(id=make_id("q", len(asked)), row=2 * len(asked), persona_id="", text=text))
    config = ResponsesConfig(n=n, temperature=0.8, max_tokens=48)
    found: dict[str, list[Response]] = {p.id: [] for p in asked}
    for answer in responses.answer_prompts(iter(asked), engine, config, f"n{n}", set()):
        if isinstance(answer, Response):
            found[answer.prompt_id].append(answer)
    return [(p, sorted(found[p.id], key=lambda r: r.index)) for p in asked]


def judged(
    engine: Counting, groups: Answered, n: int, how: dict[str, Any], keep: dict[str, Any]
) -> dict[str, float]:
    """Judge the answers and build the pairs once."""
    config = JudgingConfig(template="world/judge", **how)
    orders = 2 if config.orders == "both" else 1
    engine.tokens, start = 0, time.perf_counter()
    ordered_pairs = judging.ordered_pairs(
        ((p.id, p.text, answers) for p, answers in groups), orders, "key", n, config.comparisons_per_answer
    )
    verdicts: dict[str, list[Judgment]] = {}
    for verdict in judging.judge(ordered_pairs, engine, config, set()):
        assert isinstance(verdict, Judgment)
        verdicts.setdefault(verdict.prompt_id, []).append(verdict)
    rows = [(p, answers, verdicts.get(p.id, [])) for p, answers in groups]
    panel = pairs.Panel(calibrations=pairs.calibrate(rows), weights={}, orders=orders)
    made = [
        x
        for x in pairs.build_pairs(rows, PairsConfig(**keep), "key", n, panel)
        if isinstance(x, PreferencePair)
    ]
    seconds = time.perf_counter() - start
    texts = {r.id: (p.text, r.text) for p, answers, _ in rows for r in answers}
    gaps = [(score(*texts[pair.chosen_id]) or 0) - (score(*texts[pair.rejected_id]) or 0) for pair in made]
    known = [gap > 0 for gap in gaps if gap]
    return {
        "s": seconds, "tokens": engine.tokens / len(made), "ms_a_pair": 1000 * seconds / len(made),
        "pairs": len(made),
        "right": statistics.fmean(known),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=800)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    inner = TransformersEngine(WORLD_MODEL, EngineConfig(threads=args.threads, slots=128))
    engine = Counting(inner)
    groups = {2: answered(inner, args.prompts, 2), 4: answered(inner, args.prompts // 2, 4)}
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for turn in range(args.repeats + 1):
        for way, (n, how, keep) in WAYS.items():
            run = judged(engine, groups[n], n, how, keep)
            if turn:  # the first turn warms up
                runs[way].append(run)
    found = {}
    for way, rows in runs.items():
        ratios = [a["ms_a_pair"] / b["ms_a_pair"] for a, b in zip(rows, runs["paper"], strict=True)]
        middle = {key: round(statistics.median(row[key] for row in rows), 4) for key in rows[0]}
        found[way] = middle | {
            "time_ratio": round(statistics.median(ratios), 3),
            "time_spread": [round(min(ratios), 3), round(max(ratios), 3)],
            "token_ratio": round(
                middle["tokens"] / statistics.median(row["tokens"] for row in runs["paper"]), 3
            ),
        }
        print(f"{way:20} {found[way]}", flush=True)
    facts = {
        "prompts": args.prompts,
        "threads": args.threads,
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
    }
    versions = {name: version(name) for name in ("torch", "transformers", "sao")}
    print(json.dumps({"benchmark": "judging", "ways": found, **facts, "versions": versions}))


if __name__ == "__main__":
    main()
