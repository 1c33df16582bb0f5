"""How well a model judges, by each way of asking it: accuracy on pairs whose better answer is known.

    python benchmarks/ladder.py gold.jsonl MODEL … --out results.jsonl [--way pointwise …] [--pairs 100]

gold.jsonl is from benchmarks/gold_pairs.py, MODEL a folder or a GGUF file. Each pair is judged in both orders
by each way of WAYS. A line of the results is one model and one way. Every verdict is kept in a stage folder
beside the results, so the same command goes on after a kill and skips what is finished. min_verdict_prob is
0 here, so that a weak judge's verdicts count, too. The last line printed is JSON: all cells.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from sao.config import EngineConfig, JudgingConfig
from sao.engines import Choices, Completion, Engine, Failure, open_engine
from sao.models.locate import identity_of
from sao.records import Judgment, Response, make_id
from sao.stages.calibration import log_odds
from sao.stages.judging import OrderedPair, judge
from sao.stages.wordings import judge_templates
from sao.statistics import ratio_ci
from sao.store.files import cut_torn_line, dumps, read_jsonl
from sao.store.stage import Stage

NUMBER, LETTER, PLACE = "The best answer is number ", "The best answer is ", "The better answer is the "
WORDINGS = ["judge", "judge_checklist", "judge_reader", "judge_short"]
TEXT: dict[str, Any] = {"method": "text", "temperature": 0.7, "samples": 5}
WAYS: dict[str, dict[str, Any]] = {
    "logprob": {},
    "prefill": {"prefill": NUMBER},
    "A or B": {"choices": ["A", "B"]},
    "A or B, prefill": {"choices": ["A", "B"], "prefill": LETTER},
    "first or second": {"choices": ["first", "second"]},
    "first or second, prefill": {"choices": ["first", "second"], "prefill": PLACE},
    "checklist, prefill": {"template": "judge_checklist", "prefill": NUMBER},
    "content_free": {"content_free": True},
    "content_free, prefill": {"content_free": True, "prefill": NUMBER},
    "pointwise": {"method": "pointwise"},
    "wordings": {"wordings": WORDINGS},
    "wordings, prefill": {"wordings": WORDINGS, "prefill": NUMBER},
    "wordings, prefill, content_free": {"wordings": WORDINGS, "prefill": NUMBER, "content_free": True},
    "wordings, A or B, prefill": {"wordings": WORDINGS, "choices": ["A", "B"], "prefill": LETTER},
    "5 samples": TEXT,
    "5 samples, prefill": {**TEXT, "prefill": "Ranking: "},
    "5 samples, reasons": {**TEXT, "reasoning": True, "template": "judge_reasoning", "max_tokens": 256},
}
COSTLY = ("5 samples, reasons",)
"""Ways that are taken only where --way names them."""
Gold = list[dict[str, Any]]


class Counting:
    """An engine, and the requests and tokens that went through it; tokens read are known for engines that
    have a chat template here."""

    def __init__(self, engine: Engine) -> None:
        self.inner, self.requests, self.read, self.written = engine, 0, 0, 0
        self.name, self.identity, self.has_logprobs = engine.name, engine.identity, engine.has_logprobs
        self.usage = engine.usage

    @property
    def has_prefill(self) -> bool:
        return self.inner.has_prefill

    def generate(self, requests: Iterable[Any]) -> Iterator[Completion | Failure]:
        for done in self.inner.generate(self._counted(requests)):
            self.written += 0 if isinstance(done, Failure) else len(done.token_ids or ())
            yield done

    def choice_logprobs(self, requests: Iterable[Any]) -> Iterator[Choices | Failure]:
        return self.inner.choice_logprobs(self._counted(requests))

    def close(self) -> None:
        self.inner.close()

    def _counted(self, requests: Iterable[Any]) -> Iterator[Any]:
        chat = getattr(self.inner, "chat", None)
        for request in requests:
            self.requests += 1
            self.read += len(chat.prompt_ids(request.messages, request.prefill)) if chat else 0
            yield request


def ordered(gold: Gold, key: str) -> Iterator[OrderedPair]:
    """Each pair in both orders; those of a prompt follow each other."""
    for number, pair in enumerate(gold):
        prompt_id = make_id(pair["prompt"])
        sides = [
            Response(id=make_id(pair["prompt"], pair[name]), row=0, prompt_id=prompt_id, index=k,
                     text=pair[name], token_ids=None, finish_reason="stop")
            for k, name in enumerate(("first", "second"))
        ]  # fmt: skip
        for order, (a, b) in enumerate((sides, sides[::-1])):
            id_ = make_id(key, number, order)
            yield OrderedPair(id_, 2 * number + order, prompt_id, pair["prompt"], a, b)


def measured(stage: Stage, gold: Gold, engine: Engine, config: JudgingConfig) -> None:
    """Judge what is not judged yet and finish the stage. What it costs is noted beside the verdicts."""
    counting, since = Counting(engine), time.perf_counter()
    with stage.writer() as out:
        for record in judge(ordered(gold, stage.key), counting, config, stage.done):
            out.write(record)
            out.flush()
            since = _note(stage, counting, since)
    stage.seal(Judgment)


def _note(stage: Stage, counting: Counting, since: float) -> float:
    """Append what was spent since the last verdict; the time now."""
    now = time.perf_counter()
    row = {"verdicts": 1, "seconds": now - since, "requests": counting.requests,
           "read": counting.read, "written": counting.written}  # fmt: skip
    append(stage.path / "costs.jsonl", row)
    counting.requests = counting.read = counting.written = 0
    return now


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a line to a JSON Lines file, after what a kill left of the last one is cut off."""
    if path.is_file():
        cut_torn_line(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(dumps(row) + "\n")


def figures(stage: Stage, gold: Gold) -> dict[str, Any]:
    """Accuracy, position bias and cost of a finished cell; bias and margin in nats."""
    by_row = {verdict.row: verdict for verdict in stage.records(Judgment)}
    readable = [verdict for verdict in by_row.values() if verdict.verdict is not None]
    decided = [verdict.verdict for verdict in readable if verdict.verdict != "tie"]
    single: dict[str, list[float]] = {}
    joint: dict[str, list[float]] = {}
    by_kind: dict[str, list[float]] = {}
    biases, margins = [], []
    for number, pair in enumerate(gold):
        both = [by_row.get(2 * number + order) for order in (0, 1)]
        sign = 1 if pair["gold"] == "first" else -1
        odds = [sign * (-1) ** order * _odds(v) for order, v in enumerate(both) if v and v.verdict]
        single.setdefault(pair["prompt"], []).extend(map(_points, odds))
        if odds:
            points = _points(sum(odds)) if len(odds) == 2 else 0.5  # one order alone has the position's bias
            joint.setdefault(pair["prompt"], []).append(points)
            for kind in pair.get("kinds", ()):
                by_kind.setdefault(kind, []).append(points)
        if len(odds) == 2:
            biases.append(sign * (odds[0] - odds[1]) / 2)
            margins.append(sum(odds) / 2)
    return {
        "accuracy": _rate(single),
        "accuracy_both_orders": _rate(joint),
        "first_slot": round(fmean(word == "first" for word in decided), 3) if decided else None,
        "readable": round(len(readable) / (2 * len(gold)), 3),
        "verdict_prob": _mean([v.verdict_prob for v in by_row.values() if v.verdict_prob is not None]),
        "bias": _mean(biases),
        "margin_for_gold": _mean(margins),
        "kinds": {kind: [sum(points), len(points)] for kind, points in sorted(by_kind.items())},
        **costs(stage),
    }


def _odds(verdict: Judgment) -> float:
    """Log-odds for the first slot; of a verdict without a number ±1."""
    if verdict.p_first is not None:
        return log_odds(verdict.p_first)
    return {"first": 1.0, "second": -1.0}.get(str(verdict.verdict), 0.0)


def _points(odds: float) -> float:
    return 0.5 if abs(odds) < 1e-9 else float(odds > 0)


def _rate(by_prompt: dict[str, list[float]]) -> dict[str, Any]:
    """A rate with its 95 % interval; the unit is the prompt."""
    rate, interval = ratio_ci([sum(p) for p in by_prompt.values()], [len(p) for p in by_prompt.values()])
    known = None if math.isnan(rate) else round(rate, 3)
    return {"rate": known, "ci95": [round(x, 3) for x in interval], "n": sum(map(len, by_prompt.values()))}


def _mean(values: list[float]) -> float | None:
    return round(fmean(values), 3) if values else None


def costs(stage: Stage) -> dict[str, float]:
    """What a pair in both orders took, on average."""
    rows = list(read_jsonl(stage.path / "costs.jsonl"))
    pairs = max(1, sum(row["verdicts"] for row in rows)) / 2
    return {f"{name}_a_pair": round(sum(row[name] for row in rows) / pairs, 3)
            for name in ("seconds", "requests", "read", "written")}  # fmt: skip


def cells(args: argparse.Namespace, gold: Gold) -> Iterator[dict[str, Any]]:
    """Every model by every way; an engine is opened where something is left to do."""
    digest = make_id(*(part for pair in gold for part in (pair["prompt"], pair["first"], pair["second"])))
    labels = make_id(*(part for pair in gold for part in (pair["gold"], *pair.get("kinds", ()))))
    lines = list(read_jsonl(args.out)) if args.out.is_file() else []
    finished = {row["cell"]: row for row in lines if row.get("labels") == labels}
    for model in args.models:
        config = EngineConfig.model_validate(
            {"name": args.engine, "threads": args.threads, "dtype": args.dtype}
        )
        identity, engine = identity_of(config, model), None
        for way in args.way or [way for way in WAYS if way not in COSTLY]:
            how = JudgingConfig.model_validate({**WAYS[way], "min_verdict_prob": 0.0})
            made_of = {"judging": how.counted(), "texts": judge_templates(how), "gold": digest}
            where = {"model": identity, "engine": args.engine, "dtype": args.dtype}
            stage = Stage(args.out.parent / f"{args.out.stem}-verdicts", "verdicts", {**made_of, **where})
            if stage.fingerprint in finished:
                yield finished[stage.fingerprint]
                continue
            if not stage.open().finished:
                engine = engine or open_engine(config, model)
                measured(stage, gold, engine, how)
            row = {
                "cell": stage.fingerprint, **where, "model": Path(model).name, "way": way, "labels": labels,
                "pairs": len(gold), **figures(stage, gold), "threads": args.threads,
            }  # fmt: skip
            append(args.out, row)
            yield row
        if engine is not None:
            engine.close()


HEAD = ("judge", "way", "pairs", "right", "95 %", "first slot", "mass", "bias", "seconds a pair")


def markdown(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The lines of a table of cells: right is the share of the pairs in which both orders together favour the
    better answer, bias half the difference of the two orders' log-odds in nats."""
    yield f"| {' | '.join(HEAD)} |"
    yield "|" + "---|" * len(HEAD)
    for row in rows:
        both = row["accuracy_both_orders"]
        low, high = both["ci95"]
        name = str(row["model"]).removesuffix(".gguf")
        values = [name, row["way"], both["n"], both["rate"], f"[{low}, {high}]", row["first_slot"],
                  row["verdict_prob"], row["bias"], row["seconds_a_pair"]]  # fmt: skip
        yield f"| {' | '.join('–' if value is None else str(value) for value in values)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gold", type=Path)
    parser.add_argument("models", nargs="*", help="none: print the table of --out")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--way", action="append", choices=list(WAYS), help="default: all but the costly ones")
    parser.add_argument("--pairs", type=int, default=None, help="only so many of the pairs")
    parser.add_argument("--engine", default="transformers", choices=("transformers", "vllm"))
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    args = parser.parse_args()
    if not args.models:
        print("\n".join(markdown(read_jsonl(args.out))))
        return
    gold = list(read_jsonl(args.gold))[: args.pairs]
    gold.sort(key=lambda pair: str(pair["prompt"]))
    found = []
    for row in cells(args, gold):
        found.append(row)
        both, single = row["accuracy_both_orders"], row["accuracy"]
        print(
            f"{row['model'][:24]:24} {row['way']:32} both orders {both['rate']} {both['ci95']} "
            f"each {single['rate']} {single['ci95']} first slot {row['first_slot']} readable "
            f"{row['readable']} prob {row['verdict_prob']} {row['seconds_a_pair']} s",
            flush=True,
        )
    print(json.dumps({"benchmark": "ladder", "gold": str(args.gold), "cells": found}))


if __name__ == "__main__":
    main()
