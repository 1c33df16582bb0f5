"""How two answers are compared."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sao.config.engine import JudgeConfig
from sao.config.section import Section

READERS = ("logprob", "text", "pointwise")
"""The methods by which a chat model reads the answers."""


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
        "pointwise",
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
    """logprob: probabilities of the verdict token; text: a sampled ranking line (the paper's way);
    pointwise: probability of Yes against No for each answer alone; reward: scores of a reward model
    (judging.engine.model, a sequence classifier); function: yours (`judging.function`); the rest are
    controls: a coin, the longer or shorter answer, the one that stands first, the exact oracle (toy world
    only), the constraints of checkable prompts (no verdict where both answers keep as many); given: the
    labels that `sao import` read."""
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
    """Template with {prompt}, {first}, {second}. The two words of a verdict must stand in it, as
    {first_choice} and {second_choice} or as they are (methods logprob and text)."""
    template_pointwise: str = "judge_pointwise"
    """Template with {prompt}, {answer}; its two words stand in it as {yes} and {no} or as they are (method
    pointwise)."""
    wordings: list[str] = []
    """Templates that are all asked, in place of the one above (methods logprob and pointwise): the mean of
    their log-odds counts. Such as [judge, judge_checklist, judge_reader, judge_short]; each costs as much
    as the first."""
    reasoning: bool = False
    """Whether a text verdict may give reasons first; its last line must then be the ranking (template
    judge_reasoning)."""
    choices: tuple[str, str] = ("1", "2")
    """What a verdict begins with when the first or the second answer is better."""
    choices_pointwise: tuple[str, str] = ("Yes", "No")
    """What a reply begins with when the answer is good, or is not (method pointwise)."""
    content_free: bool = False
    """Whether the judge is also asked about answers without content ("N/A", nothing, "…" in both places), and
    its mean log-odds for these are subtracted (method logprob; contextual calibration, arXiv 2102.09690).
    Three more, short requests for each prompt and wording. In both orders it changes whether the orders
    agree, not the mean of the two."""
    prefill: str = ""
    """The beginning of the judge's reply; what follows it is read. It gives the verdict's token its
    probability where a judge would rather begin with other words."""
    temperature: float = Field(default=0.6, ge=0)
    """Sampling temperature of text verdicts."""
    max_tokens: int = Field(default=16, ge=1)
    """Longest text verdict, in tokens."""
    samples: int = Field(default=1, ge=1)
    """Text verdicts that are sampled for each pair and order; the majority of those that can be read decides
    (self-consistency, arXiv 2203.11171)."""
    min_verdict_prob: float = Field(default=0.05, ge=0, le=1)
    """Below this probability of the verdict tokens together a log-prob verdict is unparseable;
    where several are averaged (wordings), one below it is left out."""
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
        for words in (self.choices, self.choices_pointwise):
            if words[0].strip() == words[1].strip():
                raise ValueError(f"choices are both {words[0]!r}")
        self._check_ways()
        return self

    def _check_ways(self) -> None:
        """Raise ValueError for keys that another method has."""
        if self.wordings and self.method not in ("logprob", "pointwise"):
            raise ValueError(f"wordings average log-odds, which method {self.method} does not have")
        if len(set(self.wordings)) < len(self.wordings):
            raise ValueError("wordings: a template stands there twice")
        if self.content_free and self.method != "logprob":
            reason = "one answer alone has no slot" if self.method == "pointwise" else "it has no log-odds"
            raise ValueError(f"content_free belongs to method logprob, not {self.method}: {reason}")
        if self.samples > 1 and (self.method != "text" or self.temperature == 0):
            raise ValueError(
                "samples belong to method text with a temperature above 0: else all are the same"
            )

    @property
    def words(self) -> tuple[str, str]:
        """The two words between which the judge chooses."""
        return self.choices_pointwise if self.method == "pointwise" else self.choices

    @property
    def templates(self) -> list[str]:
        """The templates by which a chat model is asked; all of them for each pair and order."""
        if self.method not in READERS:
            return []
        return self.wordings or [self.template_pointwise if self.method == "pointwise" else self.template]
