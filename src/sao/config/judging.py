"""How two answers are compared."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sao.config.engine import JudgeConfig
from sao.config.section import Section


class PanelJudge(Section):
    """A further judge, who votes beside the first by the same method."""

    template: str | None = None
    """Its template; null: that of section judging."""
    engine: JudgeConfig | None = None
    """What runs it; null: what runs the first judge."""
    weight: float = Field(default=1.0, gt=0)
    """Weight of its vote; the first judge has 1."""


class JudgingConfig(Section):
    """How two answers are compared."""

    method: Literal[
        "logprob",
        "text",
        "reward",
        "function",
        "random",
        "longer",
        "shorter",
        "first",
        "oracle",
        "checks",
        "given",
    ] = "logprob"
    """logprob: probabilities of the verdict token; text: a sampled ranking line (the paper's way); reward:
    scores of a reward model (judging.engine.model, a sequence classifier); function: yours
    (`judging.function`); the rest are controls: a coin, the longer or shorter answer, the one that stands
    first, the exact oracle (toy world only), the constraints of checkable prompts (no verdict where both
    answers keep as many); given: the labels that `sao import` read."""
    flipped: float = Field(default=0.0, ge=0, le=0.5)
    """Share of the pairs of answers whose verdicts are turned around, drawn by seed: with perfect labels
    (oracle, checks) it says how good a judge must be. 0.5 leaves nothing."""
    function: str | None = None
    """A function of yours as "package.module:name" (method function), called with a prompt and a list of two
    answers. It returns two scores (numbers, the higher the better, or None where it cannot say), or one of
    the words first, second, tie, or None."""
    orders: Literal["both", "one"] = "both"
    """Whether each pair is also judged with its answers swapped (paper: one)."""
    comparisons_per_answer: int | None = Field(default=None, ge=2)
    """With how many others each answer to a prompt is compared; null: with all."""
    template: str = "judge"
    """Template with {prompt}, {first}, {second}."""
    reasoning: bool = False
    """Whether a text verdict may give reasons first; its last line must then be the ranking (template
    judge_reasoning)."""
    choices: tuple[str, str] = ("1", "2")
    """What a verdict begins with when the first or the second answer is better."""
    prefill: str = ""
    """The beginning of the judge's reply; what follows it is read. It gives the verdict's token its
    probability where a judge would rather begin with other words."""
    temperature: float = Field(default=0.6, ge=0)
    """Sampling temperature of text verdicts."""
    max_tokens: int = Field(default=16, ge=1)
    """Longest text verdict, in tokens."""
    min_verdict_prob: float = Field(default=0.05, ge=0, le=1)
    """Below this probability of the verdict tokens together a log-prob verdict is unparseable."""
    engine: JudgeConfig | None = None
    """null: the model judges its own answers. Else another judge (a control: with labels from elsewhere it is
    RLAIF)."""
    panel: list[PanelJudge] = []
    """Further judges who vote too, such as [{template: my-judge.txt}, {engine: {name: openai, model:
    other}}]."""

    @model_validator(mode="after")
    def _check(self) -> JudgingConfig:
        if self.reasoning and self.method != "text":
            raise ValueError(
                "reasoning belongs to method text: a log-probability is asked for without reasons"
            )
        if self.method == "reward" and (
            self.engine is None
            or self.engine.model is None
            or self.engine.name not in ("auto", "transformers")
        ):
            raise ValueError(
                "method reward needs the reward model: set engine.model (and leave engine.name auto or "
                "transformers)"
            )
        if (self.method == "function") != (self.function is not None):
            raise ValueError(
                "method function and the key function go together: name the function as package.module:name"
            )
        if self.panel and self.method not in ("logprob", "text"):
            raise ValueError(f"a panel votes by method logprob or text, not {self.method}")
        if self.reasoning and (self.template == "judge" or self.max_tokens < 64):
            raise ValueError(
                "reasoning needs a template that asks for it (judge_reasoning) and max_tokens of 64 or more"
            )
        if self.choices[0].strip() == self.choices[1].strip():
            raise ValueError(f"choices are both {self.choices[0]!r}")
        return self
