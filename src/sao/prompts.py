"""Prompts: what each persona asks. Personas in, `Prompt` records or Drops out (arXiv 2510.06652: x_i ← M(instruction with r_i)).

The model's text must begin with a fixed marker, which is stripped. Text without it, an empty request, one that was cut off at
the token limit and one that answers itself (a line begins with "Reply:") are dropped, each with its reason. The instruction is
one template, or one of several that are drawn by weight (`prompts.mix`). A template in which "Reply:" stands asks for a short
conversation: its last request is the prompt, what comes before are earlier turns.

Or prompts that others wrote, from a file or hub data set (`given_prompts`): the control with real prompts.
"""

from __future__ import annotations

import random
import re
from collections.abc import Container, Iterable, Iterator
from typing import Any

from sao.config import PersonasConfig, PromptsConfig
from sao.engines import Completion, Engine, Failure, Message, Request, Sample, Sampling, read_marked
from sao.errors import DataError
from sao.rows import column_texts, sample_texts
from sao.templates import fill, load_template
from sao.types import Drop, Persona, Prompt, make_id, seed_of

REPLY = "Reply:"
"""What the assistant's turns begin with in a conversation that the model writes."""
_REPLIES = re.compile(rf"^[^\S\n]*{REPLY}", re.IGNORECASE | re.MULTILINE)


def write_prompts(
    personas: Iterable[Persona], engine: Engine, config: PromptsConfig, key: str, done: Container[str]
) -> Iterator[Prompt | Drop]:
    """One prompt (or Drop) for each persona whose prompt is not `done`, in order of finishing; ids derive from `key`."""
    mix = {name: load_template(name, ("persona",)) for name in config.mix or [config.template]}
    without = load_template(config.template_without_persona, ())
    sampling = Sampling(config.max_tokens, config.temperature, config.top_p)
    waiting: dict[str, tuple[Persona, bool]] = {}

    def requests() -> Iterator[Request]:
        for persona in personas:
            prompt_id = make_id(key, persona.id)
            if prompt_id in done:
                continue
            template = mix[drawn_template(config, prompt_id)] if persona.text else without
            waiting[prompt_id] = persona, REPLY in template
            text = fill(template, persona=persona.text)
            yield Request((Message("user", text),), (Sample(prompt_id, seed_of(prompt_id)),), sampling)

    for completion in engine.generate(requests()):
        persona, has_turns = waiting.pop(completion.id)
        turns, reason = read_turns(completion, config.marker) if has_turns else read_prompt(completion, config.marker)
        if reason:
            yield Drop(row=persona.row, stage="prompts", record_id=completion.id, reason=reason)
        else:
            *earlier, text = turns
            yield Prompt(id=completion.id, row=persona.row, persona_id=persona.id, text=text, earlier=tuple(earlier))


def drawn_template(config: PromptsConfig, prompt_id: str) -> str:
    """The name of the template with which this prompt is asked for."""
    if not config.mix:
        return config.template
    return random.Random(f"template {prompt_id}").choices(list(config.mix), list(config.mix.values()))[0]


def read_prompt(completion: Completion | Failure, marker: str) -> tuple[list[str], str]:
    """The prompt in a completion, or [] and why there is none (where the model goes on to a reply, say)."""
    text, reason = read_marked(completion, marker)
    if _REPLIES.search(text):
        return [], "answers itself"
    return ([text], "") if text else ([], reason)


def read_turns(completion: Completion | Failure, marker: str) -> tuple[list[str], str]:
    """The turns of a conversation, user first and last, or [] and why there is none."""
    text, reason = read_marked(completion, marker)
    if reason:
        return [], reason
    parts = re.split(rf"^[^\S\n]*({re.escape(marker)}|{REPLY})", text, flags=re.IGNORECASE | re.MULTILINE)
    turns, marks = [part.strip() for part in parts[::2]], [mark.casefold() for mark in parts[1::2]]
    expected = [(REPLY, marker)[i % 2].casefold() for i in range(len(marks))]
    if len(turns) < 3 or len(turns) % 2 == 0 or marks != expected or not all(turns):
        return [], "no conversation"
    return turns, ""


def given_prompts(config: PromptsConfig, personas: PersonasConfig, seed: int, key: str) -> Iterator[Prompt]:
    """Prompts of others, drawn by `seed` from `prompts.source`: personas.n for training, then personas.held_out.

    Raises DataError for a source that cannot be read or holds too few.
    """
    wanted, found = personas.n + personas.held_out, 0
    options: dict[str, Any] = {"revision": config.revision, "subset": config.subset, "split": config.split}

    def texts() -> Iterator[str]:
        source = str(config.source)
        return column_texts(source, config.column, what="prompts", section="prompts", read=first_request, **options)

    for row, text in sample_texts(texts, wanted, seed):
        yield Prompt(id=make_id(key, text), row=row, persona_id=make_id("persona", "given", text), text=text)
        found += 1
    if found < wanted:
        raise DataError(
            f"{config.source}: holds {found} distinct prompts, but personas.n + personas.held_out = {personas.n} + "
            f"{personas.held_out} are asked for. Lower them or take a larger source"
        )


def first_request(value: Any) -> str | None:
    """The text of a column, or of the first user turn where it holds messages: {"role", "content"} or ShareGPT's
    {"from", "value"}, the content a text or a list of text parts. "" where there is none, None for a value of another kind."""
    messages = [value] if isinstance(value, dict) and ("role" in value or "from" in value) else value
    if isinstance(messages, list) and all(isinstance(m, dict) for m in messages):
        turns = (m for m in messages if (m.get("role") or m.get("from")) in ("user", "human"))
        first: dict[str, Any] = next(turns, {})
        value = first.get("value") if first.get("content") is None else first["content"]
        if isinstance(value, list):
            parts = [p.get("text") if isinstance(p, dict) and p.get("type") == "text" else None for p in value]
            texts = [part for part in parts if isinstance(part, str)]
            value = "".join(texts) if len(texts) == len(parts) else ""
        value = value or ""
    return value.strip() if isinstance(value, str) else None
