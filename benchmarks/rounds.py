"""Rounds in the toy world: what every round is worth on 3,000 prompts that nothing else looks at, and how
near to the best one the controller comes.

    sao sweep demo-rounds --rounds.stop '[]' --over rounds.judge=current --over rounds.personas=same \\
        --over rounds.rejected=initial --over rounds.train_from=initial --over seed=0,1,2,3,4 --out SWEEP
    sao sweep demo --over seed=0,1,2,3,4 --out ONE
    python benchmarks/rounds.py SWEEP ONE --out FILE

SWEEP has all rounds of each cell, since no rule stops them; ONE has as many generated answers in a single
round. Each model of each cell answers 3,000 prompts,
which the untrained model wrote for personas drawn by a seed of their own, and the toy world's oracle scores
the answers; one line of FILE for each model, so that the same command goes on after a kill. Then the rules
and the choice of the best round (`sao.analysis.rounds`) are applied to what the run itself measured on its
own 600 held-out prompts. Regret is the score of the best round less that of the round chosen. Intervals are
Student's, over seeds. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sao.analysis.rounds import RULES, best_of, judged_by_rules
from sao.config import load_recipe
from sao.engines import open_engine
from sao.method import run
from sao.pipeline.folder import recorded
from sao.pipeline.settings import one_answer
from sao.records import Prompt, Response
from sao.results.rounds import RoundResult
from sao.results.sweep import Cell
from sao.stages.responses import answer_prompts
from sao.store.files import cut_torn_line, dumps, read_jsonl
from sao.store.manifest import package_versions
from sao.sweep.cells import Cells
from sao.sweep.plan import label_of
from sao.toy_world.oracle import score

BASE = "builtin:world"
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}
Scores = dict[str, dict[str, Any]]


def report_prompts(folder: Path, n: int, threads: int) -> list[Prompt]:
    """Prompts by the untrained model, for personas that a seed of their own draws."""
    sizes = {"personas.n": str(n), "personas.held_out": "1", "seed": "987654", "engine.threads": str(threads)}
    run(load_recipe("demo", sizes), folder, until="prompts")
    asked = recorded(folder).asked(held_out=False)
    return [prompt for prompt in asked if score(prompt.conversation, "") is not None]


def scored(model: str, prompts: Sequence[Prompt], threads: int) -> dict[str, Any]:
    """The oracle's mean score of a model's answers, and what spread it has over the prompts."""
    config = load_recipe("demo", {"engine.threads": str(threads), "model": model})
    engine = open_engine(config.engine, model, None, lambda line: None, config.chat)
    texts = {prompt.id: prompt.conversation for prompt in prompts}
    marks = []
    for answer in answer_prompts(prompts, engine, one_answer(config), "report", (), True):
        mark = score(texts[answer.prompt_id], answer.text) if isinstance(answer, Response) else 0.0
        marks.append(0.0 if mark is None else mark)
    engine.close()
    spread = statistics.stdev(marks) / len(marks) ** 0.5
    return {
        "model": model,
        "score": round(statistics.fmean(marks), 5),
        "se": round(spread, 5),
        "n": len(marks),
    }


def models_of(root: Path, cell: Cell) -> list[str]:
    """A cell's models, by their folders below the sweep's: one of each round, or the only one."""
    if cell.rounds:
        return [f"{cell.run}/{result.model}" for result in cell.rounds]
    (model,) = (root / cell.run).glob("round-1/train-*/model")
    return [str(model.relative_to(root))]


def score_all(sweeps: dict[Path, list[Cell]], options: argparse.Namespace) -> Scores:
    """The line of each model, those that FILE has among them; the untrained one first."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.out.is_file():
        cut_torn_line(options.out)
    found: Scores = {line["model"]: line for line in read_jsonl(options.out)} if options.out.is_file() else {}
    prompts = report_prompts(next(iter(sweeps)) / "report", options.prompts, options.threads)
    places = {
        name: str(root / name) for root in sweeps for cell in sweeps[root] for name in models_of(root, cell)
    }
    for name, place in {BASE: BASE, **places}.items():
        if name not in found:
            found[name] = scored(place, prompts, options.threads) | {"model": name}
            with options.out.open("a", encoding="utf-8") as file:
                file.write(dumps(found[name]) + "\n")
    return found


def controlled(rounds: Sequence[RoundResult]) -> tuple[int, int, list[str]]:
    """The round that the controller gives back, the last one that it would have run, and what stops it."""
    seen: list[RoundResult] = []
    for result in rounds:
        seen.append(judged_by_rules([*seen, result], RULES))
        if seen[-1].stopped_by:
            break
    return best_of(seen).round, seen[-1].round, seen[-1].stopped_by


def outcomes(sweeps: dict[Path, list[Cell]], found: Scores) -> dict[str, list[dict[str, Any]]]:
    """For each setting and seed the score of each round, the round chosen, and its regret."""
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for root, cell in [(folder, cell) for folder in sweeps for cell in sweeps[folder]]:
        scores = [found[name]["score"] for name in models_of(root, cell)]
        chosen, last, why = controlled(cell.rounds) if cell.rounds else (1, 1, [])
        rows[f"{root.name}: {label_of(cell.settings)}"].append(
            {
                "seed": cell.repeats.get("seed"), "scores": scores, "chosen": chosen, "last": last,
                "stopped_by": why, "regret": round(max(scores) - scores[chosen - 1], 5),
                "over_first": round(scores[chosen - 1] - scores[0], 5),
            }
        )  # fmt: skip
    return dict(rows)


def interval(values: Sequence[float]) -> str:
    """Mean and half of its 95 % interval, over seeds; empty without values."""
    if not values:  # a single round
        return ""
    mean, half = estimate(values)
    return f"{mean:+.3f}" if len(values) < 2 else f"{mean:+.3f} ± {half:.3f}"


def estimate(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval, over seeds."""
    if len(values) < 2:
        return values[0], 0.0
    half = T95.get(len(values), 2.0) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), half


def plot(rows: dict[str, list[dict[str, Any]]], base: float, file: Path) -> None:
    """The gain by round with its 95 % intervals, as a picture; needs matplotlib."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 5), layout="constrained")
    for place, (label, group) in enumerate(rows.items()):
        most = max(len(row["scores"]) for row in group)
        found = [estimate([row["scores"][k] - base for row in group]) for k in range(most)]
        means, halves = zip(*found, strict=True)
        if most == 1:
            axes.axhspan(means[0] - halves[0], means[0] + halves[0], alpha=0.2, color="gray", label=label)
        else:  # a little beside each other, so that the intervals can be told apart
            at = [k + 1 + 0.03 * (place - len(rows) / 2) for k in range(most)]
            axes.errorbar(at, means, halves, marker="o", capsize=2, label=label)
    axes.set(xlabel="round", ylabel="gain by the oracle", xticks=range(1, 5))
    axes.grid(alpha=0.3)
    figure.legend(fontsize="small", loc="outside lower center", ncols=2)
    pyplot.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sweeps", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="a line for each model")
    parser.add_argument("--plot", type=Path, help="a picture of the gains (PNG or SVG; needs matplotlib)")
    parser.add_argument("--prompts", type=int, default=3000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    sweeps = {
        root: [cell for cell in Cells(root).read().values() if cell.error is None] for root in options.sweeps
    }
    found = score_all(sweeps, options)
    rows, base = outcomes(sweeps, found), found[BASE]["score"]
    most = max((len(row["scores"]) for group in rows.values() for row in group), default=0)
    print(f"untrained: {base:.3f}\n")
    heads = " | ".join(f"gain, round {k}" for k in range(1, most + 1))
    print(f"| setting | {heads} | chosen | regret | chosen less round 1 |\n|{'---|' * (most + 4)}")
    for label, group in rows.items():
        gains = [
            interval([row["scores"][k] - base for row in group if k < len(row["scores"])])
            for k in range(most)
        ]
        chosen = ", ".join(str(row["chosen"]) for row in group)
        regret, over = (interval([row[key] for row in group]) for key in ("regret", "over_first"))
        print(f"| {label} | {' | '.join(gains)} | {chosen} | {regret} | {over} |")
    if options.plot is not None:
        plot(rows, base, options.plot)
    print(json.dumps({"benchmark": "rounds", "base": base, "settings": rows, "prompts": found[BASE]["n"],
                      "versions": package_versions()}))  # fmt: skip


if __name__ == "__main__":
    main()
