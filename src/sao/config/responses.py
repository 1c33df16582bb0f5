"""How a prompt is answered."""

from __future__ import annotations

from pydantic import Field

from sao.config.section import Section


class ResponsesConfig(Section):
    """How a prompt is answered."""

    n: int = Field(default=2, ge=2)
    """Answers to each prompt (paper: 2)."""
    system: str | None = None
    """System message; folded into the user's turn where the model knows no system role."""
    temperature: float = Field(default=0.6, ge=0)
    """Sampling temperature (paper: 0.6)."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus share."""
    max_tokens: int = Field(default=2048, ge=1)
    """Longest answer, in tokens; a longer one is cut off and dropped."""
