"""Prompts: what each persona asks. Personas in, `Prompt` records or Drops out (arXiv 2510.06652: x_i ←
M(instruction with r_i)).

Two methods. `instruct`: the model's text must begin with a fixed marker, which is removed (with
`prompts.prefill` the reply begins with it already). Text without it, an empty request, one that was cut off
at the token limit and one that answers itself (a line begins with "Reply:") are dropped, each with its reason
and its text. The instruction is one template, or one of several that are drawn by weight (`prompts.mix`). A
template that contains "Reply:" asks for a short conversation: its last request is the prompt, the turns
before it are earlier turns. `user_turn`: the persona is the system message and the model writes the user's
turn that follows (Magpie, arXiv 2406.08464); no marker is needed.

Or prompts that others wrote, from a file or hub data set (`given_prompts`): the control with real prompts.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from sao.config import PersonasConfig, PromptsConfig
from sao.data.messages import ChatError, turns_of
from sao.data.readers import column_texts, draw_texts
from sao.engines import Completion, Engine, Failure, Request, Sample, Sampling, dropped, read_marked
from sao.errors import DataError
from sao.records import Drop, Message, Persona, Prompt, make_id, seed_of
from sao.stages.rows import persona_row
from sao.templates import fill, load_template

REPLY = "Reply:"
"""How the assistant's turns begin in a conversation that the model writes."""
_REPLIES = re.compile(rf"^[^\S\n]*{REPLY}", re.IGNORECASE | re.MULTILINE)


def write_prompts(
    personas: Iterable[Persona], engine: Engine, config: PromptsConfig, key: str, done: Container[str]
) -> Iterator[Prompt | Drop]:
    """One prompt (or Drop) for each persona whose prompt is not `done`, in order of finishing; ids derive
    from `key`."""
    ask = _by_user_turn(config) if config.method == "user_turn" else _by_instruction(config)
    waiting: dict[str, tuple[Persona, Asked]] = {}

    def requests() -> Iterator[Request]:
        for persona in personas:
            prompt_id = make_id(key, persona.id)
            if prompt_id not in done:
                asked = ask(persona, prompt_id)
                waiting[prompt_id] = persona, asked
                yield asked.request

    for completion in engine.generate(requests()):
        persona, asked = waiting.pop(completion.id)
        turns, reason = asked.read(completion)
        if reason:
            yield dropped(completion, persona.row, "prompts", reason, asked.request.prefill)
        else:
            *earlier, text = turns
            yield Prompt(
                id=completion.id, row=persona.row, persona_id=persona.id, text=text, earlier=tuple(earlier)
            )


Turns = tuple[list[str], str]
"""The turns of a conversation and "", or [] and why there are none."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for a prompt, and the function that reads the completion."""

    request: Request
    read: Callable[[Completion | Failure], Turns]


def _by_instruction(config: PromptsConfig) -> Callable[[Persona, str], Asked]:
    """Prompts asked for by an instruction (method instruct)."""
    mix = {name: load_template(name, ("persona",)) for name in config.mix or [config.template]}
    without = load_template(config.template_without_persona, ())
    sampling = Sampling(config.max_tokens, config.temperature, config.top_p)
    prefill = config.marker if config.prefill else ""

    def ask(persona: Persona, prompt_id: str) -> Asked:
        template = mix[drawn_template(config, prompt_id)] if persona.text else without
        message = Message("user", fill(template, persona=persona.text))
        read = read_turns if REPLY in template else read_prompt
        sample = Sample(prompt_id, seed_of(prompt_id))
        return Asked(
            Request((message,), (sample,), sampling, prefill),
            partial(read, marker=config.marker, prefill=prefill),
        )

    return ask


def _by_user_turn(config: PromptsConfig) -> Callable[[Persona, str], Asked]:
    """Prompts that the model writes in the user's turn (method user_turn)."""
    template = load_template(config.template_user_turn, ("persona",))
    sampling = Sampling(config.max_tokens, config.temperature, config.top_p)

    def ask(persona: Persona, prompt_id: str) -> Asked:
        system = (Message("system", fill(template, persona=persona.text)),) if persona.text else ()
        sample = Sample(prompt_id, seed_of(prompt_id))
        return Asked(Request(system, (sample,), sampling, as_user=True), read_user_turn)

    return ask


def drawn_template(config: PromptsConfig, prompt_id: str) -> str:
    """The name of the template that asks for this prompt."""
    if not config.mix:
        return config.template
    draw = random.Random(f"template {prompt_id}")
    return draw.choices(list(config.mix), weights=list(config.mix.values()))[0]


def read_prompt(completion: Completion | Failure, marker: str, prefill: str = "") -> Turns:
    """The prompt in a completion, or [] and why there is none (the model also wrote a reply, say)."""
    text, reason = read_marked(completion, marker, prefill)
    if _REPLIES.search(text):
        return [], "answers itself"
    return ([text], "") if text else ([], reason)


def read_user_turn(completion: Completion | Failure) -> Turns:
    """The whole text of a turn that the model wrote as the user."""
    return read_prompt(completion, "")


def read_turns(completion: Completion | Failure, marker: str, prefill: str = "") -> Turns:
    """The turns of a conversation, user first and last, or [] and why there is none."""
    text, reason = read_marked(completion, marker, prefill)
    if reason:
        return [], reason
    parts = re.split(rf"^[^\S\n]*({re.escape(marker)}|{REPLY})", text, flags=re.IGNORECASE | re.MULTILINE)
    turns = [part.strip() for part in parts[::2]]
    marks = [mark.casefold() for mark in parts[1::2]]
    alternating = [(REPLY, marker)[i % 2].casefold() for i in range(len(marks))]
    ends_with_request = len(turns) >= 3 and len(turns) % 2 == 1
    if not ends_with_request or marks != alternating or not all(turns):
        return [], "no conversation"
    return turns, ""


def given_prompts(
    config: PromptsConfig,
    personas: PersonasConfig,
    seed: int,
    key: str,
    skipped: int = 0,
    later: bool = False,
) -> Iterator[Prompt]:
    """Prompts that others wrote, drawn by `seed` from `prompts.source`: personas.n for training, then
    personas.held_out. `later`: a later round has none held out, and the first `skipped` for training went to
    earlier rounds.

    Raises DataError for a source that cannot be read or holds too few.
    """
    n, n_found = skipped + personas.n, 0
    options: dict[str, Any] = {"revision": config.revision, "subset": config.subset, "split": config.split}

    def texts() -> Iterator[str]:
        source = str(config.source)
        return column_texts(
            source, config.column, what="prompts", section="prompts", read=first_request, **options
        )

    for index, held_out, text in draw_texts(texts, n, personas.held_out, seed):
        n_found += 1
        if index < skipped or (later and held_out):
            continue
        yield Prompt(
            id=make_id(key, text),
            row=persona_row(index - skipped, held_out),
            persona_id=make_id("persona", "given", text),
            text=text,
        )
    if n_found < n + personas.held_out:
        raise DataError(
            f"{config.source}: holds {n_found} distinct prompts, but personas.n + personas.held_out = "
            f"{n} + {personas.held_out} are asked for, all rounds together. Lower them or take a larger "
            "source",
            key="personas.n",
        )


def first_request(value: Any) -> str | None:
    """The first request in a column: its text, or the user's first turn where it holds messages.

    Any shape of `sao.data.messages` but a list of plain texts. "" where there is no request, or one that is
    not all text (with an image); None for a value of another kind.
    """
    if isinstance(value, list) and not all(isinstance(item, dict) for item in value):
        return None
    try:
        turns = turns_of(value)
    except ChatError:
        return None
    request = next((turn.content for turn in turns if turn.role == "user"), None)
    if request is None or isinstance(request, list):
        return ""
    return request.strip() if isinstance(request, str) else None
