"""How a persona's prompt is written."""

from __future__ import annotations

import difflib
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from sao import checks
from sao.config.section import Section, setting


class PromptsConfig(Section):
    """How a persona's prompt is written; or the data set of prompts that takes their place."""

    source: str | None = None
    """null: the model writes them. Else "real prompts" (a control): a file as for personas or a hub data set
    id; then there are no personas, and personas.n and personas.held_out count prompts."""
    column: str = "prompt"
    """The key or column that holds the prompt: text, or messages, of which the first user turn counts."""
    revision: str | None = None
    """Revision of the hub data set; required for one."""
    subset: str | None = None
    """Configuration of the hub data set, where it has several."""
    split: str = "train"
    """Split of the hub data set."""
    licence: str | None = setting(default=None, affects_records=False, because="copied to the cards")
    """Licence of the data set, copied to the manifest and the cards."""
    method: Literal["instruct", "user_turn"] = "instruct"
    """instruct: the model is asked to write a prompt as this persona (the paper's way). user_turn: it is told
    with whom it speaks (`template_user_turn`, in the system turn), the user's turn is left open, and it
    writes what the user says (Magpie, arXiv 2406.08464): for models too small to follow the instruction."""
    prefill: bool = False
    """Whether the marker already stands at the start of the reply, for models that forget it (method
    instruct)."""
    template_user_turn: str = "user_turn"
    """System message with {persona} of method user_turn. Where personas.source is none there is no system
    message."""
    template: str = "prompt"
    """Template with {persona}: a name in sao/templates or a file."""
    mix: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Several templates with {persona} and their weights, such as {prompt: 2, prompt_code: 1}; drawn by seed
    for each persona. Empty: `template` alone."""
    template_without_persona: str = "prompt_without_persona"
    """Template used where personas.source is none."""
    marker: str = "Prompt:"
    """What the model's text must begin with; stripped. Text without it is dropped as unparseable."""
    checkable: float = Field(default=0.0, ge=0, le=1)
    """Share of the training prompts that end with constraints which a program can check (`sao.checks`). They
    measure any judge (`sao audit`), and labels come of them without one (judging.method checks). Not part of
    the paper's method."""
    check_kinds: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Kinds of constraints that the training prompts may have (docs/checks.md); null: all but the five that
    are never trained on. A small model keeps few kinds at all, and learns from those only."""
    max_checks: int = Field(default=3, ge=1, le=3)
    """Constraints that a prompt has at most, held-out ones as well."""
    temperature: float = Field(default=0.6, ge=0)
    """Sampling temperature (paper: 0.6)."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus share."""
    max_tokens: int = Field(default=512, ge=1)
    """Longest prompt, in tokens; a longer one is cut off and dropped."""

    @field_validator("check_kinds")
    @classmethod
    def _known(cls, kinds: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for kind in kinds or ():
            if kind in checks.UNSEEN:
                raise ValueError(f"{kind} is only for held-out prompts: what is never trained on is measured")
            if kind not in checks.TRAINED:
                near = difflib.get_close_matches(kind, checks.TRAINED, 1)
                hint = f"Did you mean {near[0]}?" if near else f"Kinds: {', '.join(checks.TRAINED)}"
                raise ValueError(f"there is no kind of constraint {kind!r}. {hint}")
        return kinds

    @model_validator(mode="after")
    def _check(self) -> PromptsConfig:
        if self.method == "user_turn" and (self.prefill or self.mix):
            key = "prefill" if self.prefill else "mix"
            raise ValueError(
                f"{key} belongs to method instruct: with user_turn nobody is asked for a prompt. Take it out"
            )
        return self
