"""What came of a run: the summary that the command line prints and `--json` gives out."""

from __future__ import annotations

from typing import Any

from sao.analysis.audit import audit
from sao.analysis.audit.tally import Tally
from sao.errors import SAOError
from sao.evaluation import compare
from sao.pipeline.reader import Reader
from sao.records import Comparison
from sao.stages.calibration import Calibration
from sao.store.manifest import read_usage

AUDITED_UP_TO = 100_000
"""Verdicts up to which the summary holds the audit's sentence; beyond, `sao audit` is asked, since it keeps
32 bytes of each."""


def summarise(run: Reader, until: int, worked: bool) -> dict[str, Any]:
    """The summary of a run whose first `until` stages (of six: prompts, respond, judge, pairs, train, eval)
    are finished."""
    found: dict[str, Any] = {
        "model": run.config.model,
        "seed": run.config.seed,
        "judging": run.config.judging.method,
        "worked": worked,
        "funnel": run.funnel(),
    }
    own = run.config.pairs.source is None
    if until >= 3 and own:
        found["judge"] = _judge_summary(run)
    if until >= 4 and own:
        possible = run.config.personas.n * run.config.responses.n * (run.config.responses.n - 1) // 2
        found["kept"] = compare.kept_summary(
            ((p.text, k, c, r) for p, k, c, r in run.labelled()), possible, run.oracle
        )
        found["worth"] = worth_of_judge(run) if found["judge"]["verdicts"] <= AUDITED_UP_TO else None
    if until == 6 and run.config.personas.held_out:
        found |= _outcome(run)
    if usage := read_usage(run.root):
        found["usage"] = {
            key: sum(line[key] for line in usage) for key in usage[0] if key not in ("stage", "model")
        }
    places = {
        "run": run.root,
        "pairs": run.stage("pairs").path / "records.jsonl",
        "log": run.stage("train").path / "metrics.jsonl",
        "model": run.round.model_dir,
    }
    found["paths"] = {name: str(path) for name, path in places.items() if path.exists()}
    return found


def worth_of_judge(run: Reader) -> str:
    """What `sao audit` says of the run's judges, in one sentence; a file that it cannot read takes no result
    away."""
    try:
        return str(audit(run)["verdict"])
    except SAOError as error:
        return f"not known: {error}"


def _judge_summary(run: Reader) -> dict[str, Any]:
    """The first judge's verdicts in five figures; `sao audit` has more, with intervals."""
    tally, first = Tally(Calibration(), explains=False), run.judges[0].name
    for prompt, answers, judgments in run.judged():
        gold = {a.id: run.oracle(prompt.text, a.text) for a in answers} if run.oracle else {}
        tally.see(answers, [j for j in judgments if j.judge == first], gold)
    unreadable = int(tally.rates["unreadable_rate"].hits) if tally.verdicts else 0
    rates = {name: tally.rate(name)["rate"] for name in ("first_slot_rate", "flip_rate", "accuracy")}
    return {"verdicts": tally.verdicts, "unreadable": unreadable, **rates}


def _judge(run: Reader) -> str:
    if run.round.roles.reader.config.engine is None:
        return "the untrained model itself"
    return f"{run.round.roles.reader.role.model}, whose verdicts it was trained on"


def _outcome(run: Reader) -> dict[str, Any]:
    rows = [(prompt.conversation, base.text, tuned.text) for prompt, base, tuned in run.held_out()]
    resamples, seed = run.config.eval.bootstrap, run.config.seed
    same = sum(base == tuned for _, base, tuned in rows)
    wins = compare.win_summary(run.stage("comparisons").records(Comparison), same, resamples, seed)
    words = list(compare.lengths(rows))
    wins |= {
        "label": f"CIRCULAR: judged by {_judge(run)}",
        "words_base": sum(a for a, _ in words) / max(1, len(words)),
        "words_tuned": sum(b for _, b in words) / max(1, len(words)),
    }
    examples = [{"prompt": p, "before": a, "after": b} for p, a, b in rows if a != b][:3]
    # Personas are disjoint, questions need not be: many people ask the same. So the gain on unseen questions
    # stands beside.
    trained_on = run.trained_texts()
    unseen = [row for row in rows if row[0] not in trained_on]
    wins["seen_in_training"] = len(rows) - len(unseen)
    # Answers cut off or empty count as they stand; how many there were must be seen.
    cut = {"base": 0, "tuned": 0}
    for _, base, tuned in run.held_out():
        for side, answer in (("base", base), ("tuned", tuned)):
            cut[side] += answer.finish_reason == "length" or not answer.text.strip()
    wins["cut_off"] = cut
    found: dict[str, Any] = {"heldout": wins, "examples": examples}
    if run.oracle:
        found["oracle"] = compare.oracle_summary(rows, run.oracle, resamples, seed)
        named = ((p.id, p.text, base.text, tuned.text) for p, base, tuned in run.held_out())
        told = run.stage("comparisons").records(Comparison)
        found["oracle"]["verdict"] = compare.oracle_verdict(named, told, run.oracle, resamples, seed)
        found["oracle"]["unseen"] = compare.oracle_summary(unseen, run.oracle, resamples, seed)
    return found


def show_summary(s: dict[str, Any]) -> str:
    """The summary as text: examples, funnel, judge, before and after, paths."""
    lines = [] if s["worked"] else ["Nothing to do: this run is finished."]
    for example in s.get("examples", []):
        lines += ["", f"  asked:  {_short(example['prompt'])}"]
        lines += [f"  before: {_short(example['before'])}", f"  after:  {_short(example['after'])}"]
    lines += ["", f"{'stage':12} {'kept':>8} {'dropped':>8}  reasons"]
    for row in s["funnel"]:
        reasons = ", ".join(f"{reason} {n}" for reason, n in row["reasons"].items())
        lines.append(f"{row['stage']:12} {row['records']:8} {row['dropped']:8}  {reasons}")
    lines += _show_judge(s) + _show_usage(s) + _show_outcome(s)
    lines.append("")
    lines += [f"{name:12} {path}" for name, path in s["paths"].items()]
    return "\n".join(lines)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 160 else text[:157] + "…"


def _show_judge(s: dict[str, Any]) -> list[str]:
    if "judge" not in s:
        return []
    j, parts = s["judge"], []
    for key, name in (
        ("accuracy", "right"),
        ("first_slot_rate", "first slot wins"),
        ("flip_rate", "flips when swapped"),
    ):
        if j[key] is not None:
            parts.append(f"{name} {100 * j[key]:.1f} %")
    lines = ["", f"judge        {j['verdicts']} verdicts, {j['unreadable']} unreadable; " + ", ".join(parts)]
    if s.get("kept", {}).get("share") is not None:
        label = s["kept"]["label_accuracy"]
        right = "" if label is None else f", {100 * label:.1f} % of them right"
        lines.append(f"pairs kept   {100 * s['kept']['share']:.1f} %{right}")
    if s.get("worth"):
        lines.append(f"worth        {s['worth']}")
    return lines


def _show_usage(s: dict[str, Any]) -> list[str]:
    if "usage" not in s:
        return []
    u = s["usage"]
    cost = f"; cost {u['cost']:.2f}" if u["cost"] else ""
    return [
        f"server       {u['requests']:,} requests, {u['retries']:,} of them sent again; "
        f"{u['prompt_tokens']:,} tokens in, "
        f"{u['completion_tokens']:,} out{cost}"
    ]


def _show_outcome(s: dict[str, Any]) -> list[str]:
    lines = []
    if s.get("oracle", {}).get("n"):
        o = s["oracle"]
        lines.append(
            f"oracle       {o['before']:.3f} → {o['after']:.3f}: gain {o['gain']:+z.3f} "
            f"[{o['ci95'][0]:+z.3f}, {o['ci95'][1]:+z.3f}] (95 %, {o['n']} held-out prompts)"
        )
        if o["unseen"].get("n"):
            u = o["unseen"]
            lines.append(
                f"  unseen     {u['before']:.3f} → {u['after']:.3f}: gain {u['gain']:+z.3f} "
                f"[{u['ci95'][0]:+z.3f}, {u['ci95'][1]:+z.3f}] (the {u['n']} of them whose text is in no "
                "training prompt)"
            )
    if s.get("heldout", {}).get("n"):
        h = s["heldout"]
        lines.append(
            f"self-judged  win {h['win']}, tie {h['tie']}, loss {h['loss']}: {100 * h['win_rate']:.1f} % "
            f"[{100 * h['ci95'][0]:.1f}, {100 * h['ci95'][1]:.1f}], p {h['p']:.2g}; "
            f"words {h['words_base']:.1f} → {h['words_tuned']:.1f}"
        )
        lines.append(f"             {h['label']}")
        if (v := s.get("oracle", {}).get("verdict")) and v["n"]:
            agrees = (
                ""
                if v["agreement"] is None
                else f"; where both decide ({v['both']}) they agree on {100 * v['agreement']:.1f} %"
            )
            lines.append(
                f"  the oracle win {v['win']}, tie {v['tie']}, loss {v['loss']}: {100 * v['win_rate']:.1f} % "
                f"[{100 * v['ci95'][0]:.1f}, {100 * v['ci95'][1]:.1f}]{agrees}"
            )
        if any(h["cut_off"].values()):
            lines.append(
                f"             answers cut off or empty: base {h['cut_off']['base']}, tuned "
                f"{h['cut_off']['tuned']}"
            )
    return lines
