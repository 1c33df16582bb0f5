"""Guards against fooling oneself: who judges whom, answers that say nothing, and judges with a taste for a slot or for length.

A judge that is the trained model, or the one it was made from, measures its own objective: such a result is labelled CIRCULAR,
and no headline figure is given for it unless asked for. Judged scores are gameable: a constant answer can win 86 %
(arXiv 2410.07137).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sao.pairs import repetition

CONSTANT_SHARE = 0.05
"""More answers than this share that are one and the same text are called degenerate."""
REPEATED_SHARE = 0.3
"""An answer is repetitive where more of its 4-grams of words than this repeat an earlier one."""
SLOT_TASTE = 0.1
"""Further than this from a half, the share of decided verdicts for the first slot is called a taste for a slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a model is: `weights` (see sao.chat.identity_of), what it is called, whom it comes from (identities and names), and its
    architecture."""

    weights: str
    name: str
    parents: frozenset[str] = field(default_factory=frozenset)
    family: str = ""


def read_identity(weights: str, name: str, folder: Path | None) -> Identity:
    """The identity of a model whose files lie in `folder` (None: they are elsewhere, as a server's)."""
    if folder is None:
        return Identity(weights=weights, name=name, family=_family_of_name(name))
    config = _json(folder / "config.json")
    made = _json(folder / "sao_manifest.json")
    parents = {made.get("model_identity"), made.get("config", {}).get("model"), config.get("_name_or_path")}
    named = {str(parent) for parent in parents if parent} - {name, str(folder), "builtin:world"}
    if made.get("config", {}).get("model") == "builtin:world":
        named.add("builtin:world")
    return Identity(weights=weights, name=name, parents=frozenset(named), family=str(config.get("model_type", "")))


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except ValueError:
        return {}  # says nothing about the lineage; the model itself is read, and complained about, elsewhere


def _family_of_name(name: str) -> str:
    """The first word of a model's name without its owner: "Qwen/Qwen3-8B" → "qwen"."""
    last = name.rsplit("/", 1)[-1].lower()
    return "".join(c for c in last.split("-")[0].split("_")[0] if c.isalpha())


def relation(judge: Identity, model: Identity) -> str:
    """How a judge is related to a model: "same" (weights or name), "lineage" (one was made from the other, or both from one),
    "family" (same architecture), or "none"."""
    if judge.weights == model.weights or judge.name == model.name:
        return "same"
    ancestors = {judge.weights, judge.name, *judge.parents} & {model.weights, model.name, *model.parents}
    if ancestors:
        return "lineage"
    return "family" if judge.family and judge.family == model.family else "none"


def judge_label(judge: Identity, tuned: Identity, base: Identity) -> tuple[str, str]:
    """("CIRCULAR" | "WARNING" | "", the reason in a sentence)."""
    found = {what: relation(judge, model) for what, model in (("tuned", tuned), ("base", base))}
    for what, how in found.items():
        if how in ("same", "lineage"):
            is_it = f"the {what} model itself" if how == "same" else f"of the {what} model's own lineage"
            return "CIRCULAR", f"the judge is {is_it}: it measures what it was trained on or made from"
    if "family" in found.values():
        return "WARNING", "the judge is of the same family as the models: judges favour their own kind"
    return "", ""


def degenerate(texts: Sequence[str]) -> list[str]:
    """What is wrong with a model's answers as a whole, in sentences; [] where nothing is."""
    if not texts:
        return ["no answers"]
    found = []
    text, n = Counter(" ".join(t.split()) for t in texts).most_common(1)[0]
    if n > 1 and n / len(texts) > CONSTANT_SHARE:
        found.append(f"DEGENERATE: {n} of {len(texts)} answers are the same text: {text[:60]!r}")
    repetitive = sum(repetition(t) > REPEATED_SHARE for t in texts)
    if repetitive / len(texts) > CONSTANT_SHARE:
        found.append(f"DEGENERATE: {repetitive} of {len(texts)} answers repeat themselves")
    empty = sum(not t.strip() for t in texts)
    if empty / len(texts) > CONSTANT_SHARE:
        found.append(f"DEGENERATE: {empty} of {len(texts)} answers are empty or were cut off")
    return found


def slot_warning(first_slot_rate: float | None, decided: int) -> str | None:
    """A sentence where a judge's verdicts hang on the slot, None where they do not or there are too few to say."""
    if first_slot_rate is None or decided < 20 or abs(first_slot_rate - 0.5) <= SLOT_TASTE:
        return None
    return f"POSITION BIAS: {100 * first_slot_rate:.0f} % of the decided verdicts are for the first slot"


def by_length(rows: Iterable[tuple[int, int, float]], bins: int = 4) -> list[dict[str, Any]]:
    """Win rate by how much longer the model's answer is than the other: (words, other's words, points) a prompt, in bins of as
    many prompts each."""
    ordered = sorted((mine / max(1, other), points) for mine, other, points in rows)
    found = []
    for i in range(bins):
        part = ordered[i * len(ordered) // bins : (i + 1) * len(ordered) // bins]
        if part:
            rate = sum(points for _, points in part) / len(part)
            found.append({"ratio": [part[0][0], part[-1][0]], "win_rate": rate, "n": len(part)})
    return found
