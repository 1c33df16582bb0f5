"""Who a model is, and how a judge is related to the models that it judges.

A judge that is the trained model, the one it was made from, or the one that labelled its training pairs
measures its own
objective: such a result is labelled CIRCULAR, and no headline figure is given for it unless asked for (`sao
eval --headline`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sao.config.judging import READERS

_DIGEST = re.compile(r"[0-9a-f]{16}")


_NO_NAME = re.compile(
    r"(v?\d+|models?|checkpoints?|ckpt|final|merged|last|best|hf|latest|outputs?|weights|snapshots|"
    r"[0-9a-f]{40})(-\d+)?|.{0,2}"
)
"""Last parts of a path that say nothing about the model in it."""


_FORMAT = re.compile(
    r"(-(fp8|fp16|bf16|int[48]|[48]bit|awq|gptq|bnb|gguf|nvfp4|mxfp4|w\da\d+|i?q\d(-([01k]|xx?s|nl|[sm])(-[sml]|-xl)?)?))+$"
)
"""Endings of a name that say only how the numbers are stored."""


_NO_FAMILY = re.compile(
    "alpha|api|awq|base|beta|bf|bit|bnb|builtin|chat|distill|dpo|flash|fp|gguf|gptq|hf|hub|instruct|int|it|"
    "judge|large|latest|local|medium|mini|models?|my|nano|ollama|plus|preview|pro|quantized|server|sft|small|the|thinking|tiny|tuned|turbo"
)
"""Words of names that many families use."""


_ASKED = (*READERS, "reward")
"""The methods of judging that ask a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a model is: `weights` (see sao.models.chat.identity_of), what it is called, whom it comes from
    (identities and names), and its architecture (or, where its files are elsewhere, the words of its name).

    `plain` is what the weights alone are (see sao.models.chat.weights_identity), whatever engine runs them,
    or for a server's model the hub id that it is said to be; "" where that is not known. `judges` are the
    names of those who labelled the pairs that it was trained on, as far as its manifest says; the model that
    it was made from is among `parents`.
    """

    weights: str
    name: str
    parents: frozenset[str] = field(default_factory=frozenset)
    family: str = ""
    plain: str = ""
    judges: frozenset[str] = field(default_factory=frozenset)


def read_identity(weights: str, name: str, folder: Path | None, plain: str | None = None) -> Identity:
    """The identity of a model.

    Args:
        weights: What its engine calls it (see sao.models.chat.identity_of).
        name: What it is called: a folder, a hub id, or the name under which a server knows it.
        folder: Where its files lie; None: elsewhere, as a server's.
        plain: What its weights alone are; None: read from `weights`; "": not known, as with a server that is
            asked for a model by a name of its own, while the rest of `weights` is that of another model.

    """
    plain = _plain(weights, name) if plain is None else plain
    if folder is None:
        return Identity(weights=weights, name=name, family=_words(name), plain=plain)
    config, made = _json(folder / "config.json"), _json(folder / "sao_manifest.json")
    model, asked = _at(made, "config", "model"), _at(made, "config", "engine")
    identity, served = str(_at(made, "model_identity") or ""), str(_at(asked, "openai", "model") or "")
    parents = {identity, _plain(identity, served), model, _at(config, "_name_or_path"), *_models_of(asked)}
    return Identity(
        weights=weights,
        name=name,
        parents=frozenset(str(parent) for parent in parents if parent) - {name, str(folder)},
        family=str(_at(config, "model_type") or _words(name)),
        plain=plain,
        judges=_labellers(_at(made, "config")),
    )


def _plain(weights: str, served: str) -> str:
    """What an identity says of the weights alone, without the server's name and the engine's settings; "" for
    nothing."""
    bare = re.sub(r"(\+[0-9a-f]{8,})+$", "", weights)
    if not bare.startswith("openai:"):
        return bare
    start = next((start for start in (f"openai:{served}:", "openai::") if bare.startswith(start)), None)
    if start:
        return bare.removeprefix(start)
    last = bare.rsplit(":", 1)[-1]
    return last if _DIGEST.fullmatch(last) else ""


def _labellers(config: Any) -> frozenset[str]:
    """Who labelled the pairs of a run with this config (as in a manifest), by name; not the run's own model,
    nobody where the pairs were given or no model was asked."""
    judging = _at(config, "judging")
    if _at(judging, "method") not in (None, *_ASKED) or _at(config, "pairs", "source"):
        return frozenset()
    panel = _at(judging, "panel")
    engines = [_at(one, "engine") for one in (judging, *(panel if isinstance(panel, list) else []))]
    return frozenset(
        name for engine in engines for name in (_at(engine, "model"), *_models_of(engine)) if name
    )


def _models_of(engine: Any) -> list[str]:
    """The name by which an engine's config asks a server for a model."""
    name = _at(engine, "openai", "model") if _at(engine, "name") == "openai" else None
    return [name] if name else []


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError:
        return {}  # says nothing about the lineage; the model itself is read, and complained about, elsewhere


def _at(value: Any, *keys: str) -> Any:
    """What stands under the keys of nested objects, None where there is nothing."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _short(name: str) -> str:
    """A model's name without owner, folders, revision and number format: "Qwen/Qwen3-8B-FP8",
    "/models/Qwen3-8B/final" and "qwen3:8b" → "qwen3-8b"; "" where nothing is left."""
    for part in reversed(name.split("@")[0].split("/")):
        last = part.rsplit("--", 1)[-1] if part.startswith("models--") else part  # the hub's cache
        word = re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")
        word = _FORMAT.sub("", word)
        if not _NO_NAME.fullmatch(word):
            return word
    return ""


def _words(name: str) -> str:
    """The words of a name in which its family may be: "meta-llama/Meta-Llama-3-8B" → "meta llama"."""
    whole = name if name.count("/") < 2 else _short(name)
    words = dict.fromkeys(re.findall(r"[a-z]{2,}", whole.lower()))
    return " ".join(word for word in words if not _NO_FAMILY.fullmatch(word))


def _alike(ours: Iterable[str], theirs: Iterable[str]) -> bool:
    """Whether two lists of what models are called (identities, names) have one in common. Names of folders
    and hub ids count only where the weights of one side are not known: there are many folders of one name."""
    a, b = {x for x in ours if x}, {x for x in theirs if x}
    if a & b:
        return True
    if all(any(_DIGEST.fullmatch(x) for x in side) for side in (a, b)):
        return False
    short = [
        {_short(x) for x in side if not (_DIGEST.fullmatch(x) or x.startswith("openai:"))} for side in (a, b)
    ]
    return bool(short[0] & short[1] - {""})


def _kin(ours: str, theirs: str) -> bool:
    """Whether two families are one, by their letters: "qwen3" is "qwen", "gemma2" is "gemma", "llama" stands
    in "meta llama"."""
    a, b = _letters(ours), _letters(theirs)
    if set(a) & set(b):
        return True
    # Three letters stand in too many words (phi in dolphin).
    inside = ((word, "".join(other)) for own, other in ((a, b), (b, a)) for word in own if len(own) == 1)
    return any(len(word) > 3 and word in text for word, text in inside)


def _letters(family: str) -> list[str]:
    """A model type's letters before its number ("qwen3_moe" → "qwen"; "gpt_neox" → "gptneox", which is no
    "gpt"), or a name's words."""
    found = []
    for word in family.lower().split():
        first, *rest = word.split("_")
        whole = first + "".join(rest) if first == "gpt" else first
        found += re.findall(r"^[a-z]+", whole)
    return found


def relation(judge: Identity, model: Identity) -> str:
    """How a judge is related to a model: "same" (weights or name), "lineage" (one was made from the other, or
    both from one), "labels" (it labelled the pairs that the model was trained on), "family" (same
    architecture), or "none"."""
    own, other = ((one.weights, one.plain, one.name) for one in (judge, model))
    if _alike(own, other):
        return "same"
    pairs = ((own, model.parents), (judge.parents, other), (judge.parents, model.parents))
    if any(_alike(*pair) for pair in pairs):
        return "lineage"
    if _alike(own, model.judges):
        return "labels"
    return "family" if _kin(judge.family, model.family) else "none"


_CIRCULAR = {
    "same": "the judge is the {} model itself: it measures what it was trained on or made from",
    "lineage": "the judge is of the {} model's own lineage: it measures what it was trained on or made from",
    "labels": "the judge labelled the pairs that the {} model was trained on: it measures what it taught",
}


Label = Literal["CIRCULAR", "WARNING", ""]


def judge_label(judge: Identity, tuned: Identity, base: Identity) -> tuple[Label, str]:
    """("CIRCULAR" | "WARNING" | "", the reason in a sentence, or several joined by "; "). The tuned model
    goes first."""
    found = {what: relation(judge, model) for what, model in (("tuned", tuned), ("base", base))}
    circular = [_CIRCULAR[how].format(what) for what, how in found.items() if how in _CIRCULAR][:1]
    notes = []
    if base.weights == tuned.weights or (base.plain and base.plain == tuned.plain):
        notes.append("base and tuned are the same weights: any difference between them is chance")
    if not circular and "family" in found.values():
        notes.append("the judge is of the same family as the models: judges favour their own kind")
    return "CIRCULAR" if circular else "WARNING" if notes else "", "; ".join(circular + notes)
