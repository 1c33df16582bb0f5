"""How the trained model is compared with its base."""

from __future__ import annotations

from pydantic import Field

from sao.config.engine import EngineConfig
from sao.config.section import Section, setting


class EvaluationConfig(Section):
    """Trained model against base on held-out prompts."""

    bootstrap: int = setting(default=10_000, ge=100, affects_records=False, because="intervals only")
    """Resamples of the prompts for the 95 % intervals."""
    checkable: float = Field(default=0.0, ge=0, le=1)
    """Share of the held-out prompts that end with constraints which a program can check (`sao.checks`), of
    all kinds: a measure of before and after that no judge touches."""
    judged: bool = True
    """Whether the run's judge compares base and trained model on the held-out prompts. That figure is
    circular, and takes most of the evaluation's time; false leaves the oracle's or the constraints'."""
    base_logprobs: bool = True
    """Whether the base model reads both models' answers to checkable held-out prompts: how probable it finds
    them says how far training went. Done by the built-in engine."""
    max_tokens: int = Field(default=2048, ge=1)
    """Longest verdict or mark with its reasons, in tokens (suites arena, mtbench, mtbench-pairs)."""
    self_tests: int = setting(
        default=20,
        ge=0,
        affects_records=False,
        because="how many answers the judge is tried on, kept by number in a file of their own",
    )
    """Answers on which the judge of `sao eval --suite` is tried: against themselves, swapped, padded, cut,
    shuffled; 0: none."""
    engine: EngineConfig | None = None
    """What runs base and tuned model; null: the recipe's engine, or the built-in one where that is a server,
    which cannot be given the tuned weights."""
