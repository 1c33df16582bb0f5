"""Prompts: what each persona asks. Personas in, `Prompt` records or Drops out (arXiv 2510.06652: x_i ← M(instruction with r_i)).

The model's text must begin with a fixed marker, which is stripped. Text without it, an empty request and one that was cut
off at the token limit are dropped, each with its reason.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator

from sao.config import PromptsConfig
from sao.engines import Completion, Engine, Failure, Message, Request, Sample, Sampling
from sao.templates import fill, load_template
from sao.types import Drop, Persona, Prompt, make_id, seed_of


def write_prompts(
    personas: Iterable[Persona], engine: Engine, config: PromptsConfig, key: str, done: Container[str]
) -> Iterator[Prompt | Drop]:
    """One prompt (or Drop) for each persona whose prompt is not `done`, in order of finishing; ids derive from `key`."""
    with_persona = load_template(config.template, ("persona",))
    without = load_template(config.template_without_persona, ())
    sampling = Sampling(config.max_tokens, config.temperature, config.top_p)
    waiting: dict[str, Persona] = {}

    def requests() -> Iterator[Request]:
        for persona in personas:
            prompt_id = make_id(key, persona.id)
            if prompt_id in done:
                continue
            waiting[prompt_id] = persona
            text = fill(with_persona, persona=persona.text) if persona.text else without
            yield Request((Message("user", text),), (Sample(prompt_id, seed_of(prompt_id)),), sampling)

    for completion in engine.generate(requests()):
        persona = waiting.pop(completion.id)
        if isinstance(completion, Failure):
            yield Drop(row=persona.row, stage="prompts", record_id=completion.id, reason=completion.reason)
            continue
        text, reason = read_prompt(completion, config.marker)
        if reason:
            yield Drop(row=persona.row, stage="prompts", record_id=completion.id, reason=reason)
        else:
            yield Prompt(id=completion.id, row=persona.row, persona_id=persona.id, text=text)


def read_prompt(completion: Completion, marker: str) -> tuple[str, str]:
    """The prompt in a completion, or "" and why there is none."""
    text = completion.text.strip()
    if not text.casefold().startswith(marker.casefold()):
        return "", "no marker" if text else "empty"
    text = text[len(marker) :].strip()
    if completion.finish_reason == "length":
        return "", "cut off at max_tokens"
    return (text, "") if text else ("", "empty")
