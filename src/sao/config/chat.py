"""The chat template of the recipe's model, and what it is told."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from sao.config.section import Section

RESERVED = (
    "messages",
    "conversation",
    "tools",
    "documents",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "tokenizer_kwargs",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
)
"""Names that a template or transformers needs for something else."""
SWITCHES = ("enable_thinking", "thinking")
"""Keys by which templates are told whether to think."""
EFFORTS = ("reasoning_effort", "reasoning_strength")
"""Keys by which templates are told how long to think."""


class ChatConfig(Section):
    """How chats are written for `model`. It holds for that model, for the one that is trained from it, and
    for a judge that is the same model; a judge of another model (judging.engine.model) has its own
    template."""

    template: str | None = None
    """A file with a chat template (Jinja, as in chat_template.jinja) in place of the model's own, or for a
    base model that has none. Not where a server answers: it writes chats by its own template."""
    template_args: dict[str, Any] = {}
    """What the template is told, such as {enable_thinking: true} or {reasoning_effort: low}. Without
    enable_thinking, thinking or an effort the model is asked not to think; with one of them, what it thinks
    is split off its answers (and trained on with them). A server gets it as chat_template_kwargs."""

    reasoning_tokens: int = Field(default=0, ge=0)
    """Tokens for what the model thinks before it answers a prompt, beside responses.max_tokens. An answer
    that has not begun when both are used up is dropped."""

    @field_validator("template_args")
    @classmethod
    def _check_args(cls, args: dict[str, Any]) -> dict[str, Any]:
        taken = sorted(set(args) & set(RESERVED))
        if taken:
            raise ValueError(f"{', '.join(taken)}: set by SAO itself; take it out")
        if odd := [name for name in args if not name.isidentifier()]:
            raise ValueError(f"{odd[0]!r} is no name: write {{name: value}}, with a space after the colon")
        return args

    @property
    def thinks(self) -> bool:
        """Whether the model is asked to think before it answers."""
        for switch in SWITCHES:
            if switch in self.template_args:
                return bool(self.template_args[switch])
        return any(self.template_args.get(key) not in (None, "none") for key in EFFORTS)
