"""Who asks: shipped personas, personas that the model writes itself, nobody. Repetition of the prompts, and
the gain.

    python benchmarks/personas.py --seeds 0 1 2 3 4 --threads 1 --out runs/toy-world

Each way writes as many prompts and is trained as the demo is. All models are then asked the same held-out
prompts, those of the shipped personas, so that the gains compare; prompts that stand in a way's own training
set are left out for all. Goes on where it stopped, and shares its folders with toy_world.py. Prints a
Markdown table and one JSON line last.

Repetition is the share of the training prompts that equal an earlier one (normalised), as in the paper's 0.73
% with personas and 45.65 % without (arXiv 2510.06652).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from sao.config import load_recipe
from sao.data.similarity import normalise
from sao.engines import open_engine
from sao.method import run
from sao.pipeline.folder import reader
from sao.pipeline.reader import Reader
from sao.pipeline.settings import one_answer
from sao.records import Prompt, Response
from sao.stages.responses import answer_prompts
from sao.statistics import bootstrap_ci
from sao.store.manifest import package_versions
from sao.toy_world.oracle import score

WAYS: dict[str, dict[str, str]] = {
    "shipped": {},
    "self-made": {"personas.source": "self"},
    "self-made, no traits": {"personas.source": "self", "personas.writing.traits_each": "0"},
    "none": {"personas.source": "none"},
}
FOLDERS = {"shipped": "2", "self-made": "self", "self-made, no traits": "bare", "none": "none"}


def repetition(prompts: list[Prompt]) -> float:
    """The share of prompts that equal an earlier one."""
    return 1 - len({normalise(prompt.text) for prompt in prompts}) / len(prompts)


def scores(job: Reader, model: str, prompts: list[Prompt], folder: str) -> dict[str, float]:
    """The oracle's score of one answer to each prompt, by its text; the answers' seeds hang on the prompts
    alone."""
    engine = open_engine(job.config.engine, model)
    try:
        answers = {
            r.prompt_id: r
            for r in answer_prompts(prompts, engine, one_answer(job.config), folder, ())
            if isinstance(r, Response)
        }
    finally:
        engine.close()
    found = {p.id: score(p.text, answers[p.id].text) for p in prompts if p.id in answers}
    return {id_: value for id_, value in found.items() if value is not None}


def one_seed(seed: int, threads: int, out: Path) -> dict[str, dict[str, Any]]:
    """Repetition and gain of each way."""
    jobs: dict[str, Reader] = {}
    for way, changes in WAYS.items():
        config = load_recipe("demo", {"seed": str(seed), "engine.threads": str(threads), **changes})
        folder = out / f"{seed}-{FOLDERS[way]}"
        try:
            run(config, folder, until="train")
        except Exception as error:
            print(f"{way}, seed {seed}: {error}", file=sys.stderr)
            continue
        jobs[way] = reader(config, folder)
    shipped = jobs["shipped"]
    trained_on = {normalise(p.text) for job in jobs.values() for p in job.asked(False)}
    asked = [p for p in shipped.asked(True) if normalise(p.text) not in trained_on]
    before = scores(shipped, shipped.config.model, asked, "base")
    found = {}
    for way, job in jobs.items():
        after = scores(job, str(job.round.model_dir), asked, "base")
        gains = [after[id_] - before[id_] for id_ in before if id_ in after]
        prompts = list(job.asked(False))
        people = job.stage("personas").counts
        found[way] = {
            "seed": seed,
            "repetition": repetition(prompts),
            "distinct": len({normalise(p.text) for p in prompts}),
            "drafts": people.records + people.dropped,
            "pairs": job.stage("pairs").counts.records,
            "gain": statistics.fmean(gains),
            "ci95": bootstrap_ci(gains, 10_000, seed),
            "n": len(gains),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/toy-world"))
    args = parser.parse_args()
    runs = [one_seed(seed, args.threads, args.out) for seed in args.seeds]
    print(
        "| personas | repetition | distinct prompts | pairs | gain, each seed | mean gain "
        "|\n|---|---|---|---|---|---|"
    )
    for way in WAYS:
        rows = [r[way] for r in runs if way in r]
        if not rows:
            continue
        mean = {
            key: statistics.fmean(row[key] for row in rows)
            for key in ("repetition", "distinct", "pairs", "gain")
        }
        each = ", ".join(f"{row['gain']:+.3f}" for row in rows)
        counts = f"{100 * mean['repetition']:.1f} % | {mean['distinct']:,.0f} | {mean['pairs']:,.0f}"
        print(f"| {way} | {counts} | {each} | {mean['gain']:+.3f} |")
    print(json.dumps({"runs": runs, "threads": args.threads, "versions": package_versions()}))


if __name__ == "__main__":
    main()
