"""What came of a run: the summary that the command line prints and `--json` gives out."""

from __future__ import annotations

from typing import Any

from sao.evaluation import compare
from sao.folder import RunFolder
from sao.manifest import read_usage
from sao.types import Comparison


def summarise(run: RunFolder, until: int, worked: bool) -> dict[str, Any]:
    """The summary of a run whose first `until` stages (of six: prompts, respond, judge, pairs, train, eval) are finished."""
    found: dict[str, Any] = {
        "model": run.config.model,
        "seed": run.config.seed,
        "judging": run.config.judging.method,
        "worked": worked,
        "funnel": run.funnel(),
    }
    own = run.config.pairs.source is None
    if until >= 3 and own:
        found["judge"] = compare.judge_summary(((p.text, a, j) for p, a, j in run.judged()), run.oracle)
    if until >= 4 and own:
        possible = run.config.personas.n * run.config.responses.n * (run.config.responses.n - 1) // 2
        found["kept"] = compare.kept_summary(((p.text, k, c, r) for p, k, c, r in run.labelled()), possible, run.oracle)
    if until == 6 and run.config.personas.held_out:
        found |= _outcome(run)
    if usage := read_usage(run.root):
        found["usage"] = {key: sum(line[key] for line in usage) for key in usage[0] if key not in ("stage", "model")}
    places = {
        "run": run.root,
        "pairs": run.pairs_stage.path / "records.jsonl",
        "log": run.train_stage.path / "metrics.jsonl",
        "model": run.model_dir,
    }
    found["paths"] = {name: str(path) for name, path in places.items() if path.exists()}
    return found


def _judge(run: RunFolder) -> str:
    if run.config.judging.engine is None:
        return "the untrained model itself"
    return f"{run.judge_model[0]}, whose verdicts it was trained on"


def _outcome(run: RunFolder) -> dict[str, Any]:
    rows = [(prompt.text, base.text, tuned.text) for prompt, base, tuned in run.held_out()]
    resamples, seed = run.config.eval.bootstrap, run.config.seed
    same = sum(base == tuned for _, base, tuned in rows)
    wins = compare.win_summary(run.comparisons_stage.records(Comparison), same, resamples, seed)
    words = list(compare.lengths(rows))
    wins |= {
        "label": f"CIRCULAR: judged by {_judge(run)}",
        "words_base": sum(a for a, _ in words) / max(1, len(words)),
        "words_tuned": sum(b for _, b in words) / max(1, len(words)),
    }
    examples = [{"prompt": p, "before": a, "after": b} for p, a, b in rows if a != b][:3]
    # Personas are disjoint, questions need not be: many people ask the same. So the gain on unseen questions stands beside.
    trained_on = run.trained_texts()
    unseen = [row for row in rows if row[0] not in trained_on]
    wins["seen_in_training"] = len(rows) - len(unseen)
    # Answers cut off or empty are in no pair of answers below; how many there were must be seen.
    wins["cut_off"] = {
        "base": run.base_answers_stage.counts["dropped"],
        "tuned": run.tuned_answers_stage.counts["dropped"],
    }
    found: dict[str, Any] = {"heldout": wins, "examples": examples}
    if run.oracle:
        found["oracle"] = compare.oracle_summary(rows, run.oracle, resamples, seed)
        found["oracle"]["unseen"] = compare.oracle_summary(unseen, run.oracle, resamples, seed)
    return found
