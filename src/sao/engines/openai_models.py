"""The list of models that a server gives at /v1/models: which one to ask for, its context, and what kind of
server it is.

Servers write the list in several ways, and some have none: then the name is sent as it is, and the server
says whether it knows it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from sao.errors import EngineError

Body = dict[str, Any]

NAMES = ("id", "model", "name")
"""Keys that hold a model's name, the one to send first."""
CONTEXTS = ("max_model_len", "context_length", "context_window", "max_context_length")
"""Keys that hold a model's context in tokens."""
_NO_PENALTY: Body = {"min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
NEUTRAL: dict[str, Body] = {
    "vllm": {"top_k": -1, "repetition_penalty": 1.0, **_NO_PENALTY},
    "sglang": {"top_k": -1, "repetition_penalty": 1.0, **_NO_PENALTY},
    "llamacpp": {"top_k": 0, "repeat_penalty": 1.0, **_NO_PENALTY},
}
"""Settings that switch off what a kind of server applies of itself: vLLM and SGLang take top_k and others
from the model's generation_config.json, llama.cpp has top_k 40 and min_p 0.05."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model on a server: the name to send, its context in tokens where that is told, and the settings that
    switch off the server's own (`NEUTRAL`; None: it is not known which)."""

    name: str
    context: int | None = None
    neutral: Body | None = field(default=None, hash=False)


def find_served(listed: Any, wanted: str, is_named: bool, url: str) -> Served:
    """The model `wanted` in what /v1/models answered, or the only one there. `is_named`: the recipe gives the
    name on the server, so no other is taken.

    Without a list, or where it holds a pattern for it ("*", "openai/*"), the name is taken as it is. Raises
    EngineError where the list holds others only.
    """
    entries = _entries(listed)
    by_name = {name: entry for entry in reversed(entries) for name in reversed(_names(entry))}
    patterns = [name for name in by_name if "*" in name]
    plain = {_names(entry)[0]: entry for entry in entries if "*" not in _names(entry)[0]}
    for name in (wanted, f"{wanted}:latest"):  # Ollama's name for the newest
        if name in by_name and name not in patterns:
            return _served(by_name[name])
    is_part = isinstance(listed, dict) and bool(listed.get("has_more"))
    if not plain or is_part or any(fnmatchcase(wanted, pattern) for pattern in patterns):
        return Served(wanted)
    if is_named or len(plain) > 1 or patterns:
        names = ", ".join(sorted({*plain, *patterns})[:10])
        raise EngineError(
            f"{url} serves no {wanted!r}. Set engine.openai.model to one of what it serves: {names}",
            key="engine.openai.model",
        )
    return _served(*plain.values())


def _entries(listed: Any) -> list[Body]:
    """The models of a list: under "data" (OpenAI), "models" (Ollama, Gemini), or bare; objects or names."""
    if isinstance(listed, dict):
        listed = next((listed[key] for key in ("data", "models") if listed.get(key)), [])
        if isinstance(listed, dict):  # one model, or models by name
            listed = [listed] if _names(listed) else list(listed)
    if not isinstance(listed, list):
        return []
    entries = [{"id": entry} if isinstance(entry, str) else entry for entry in listed]
    return [entry for entry in entries if isinstance(entry, dict) and _names(entry)]


def _names(entry: Body) -> list[str]:
    """All names of a model; the first is the one to send."""
    aliases = entry.get("aliases")
    values = [*(entry.get(key) for key in NAMES), *(aliases if isinstance(aliases, list) else [])]
    names = [value for value in values if isinstance(value, str) and value]
    return names + [name.removeprefix("models/") for name in names if name.startswith("models/")]  # Gemini


def _served(entry: Body) -> Served:
    context = next((entry[key] for key in CONTEXTS if isinstance(entry.get(key), int)), None)
    kind = str(entry.get("owned_by", "")).lower()
    if kind not in NEUTRAL and isinstance(entry.get("max_model_len"), int):
        kind = "vllm"  # or a server made from it
    return Served(_names(entry)[0], context, NEUTRAL.get(kind))
