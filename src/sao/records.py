"""The records that pass from stage to stage: flat, frozen, linked by id.

Every record has an `id`, a hash of what made it, and a `row`, its place in its stage's order. A stage's final
file is sorted by row, so it does not depend on the order in which an engine finished.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

Verdict = Literal["first", "second", "tie"]
FinishReason = Literal["stop", "length"]


def make_id(*parts: object) -> str:
    """A 16-digit hexadecimal id: BLAKE2b over the parts (stage fingerprint, input ids, sample index, round,
    …)."""
    text = "\x1f".join(str(part) for part in parts)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def seed_of(record_id: str) -> int:
    """The seed of the request that makes this record, below 2**63: it depends on the id alone."""
    return int(record_id, 16) >> 1


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Persona:
    """Somebody who may ask the model something. An empty `text` stands for nobody (the control without
    personas)."""

    id: str
    row: int
    text: str


@dataclass(frozen=True, slots=True)
class Constraint:
    """Something that a program can check in an answer: a kind of `sao.checks` and its values (JSON)."""

    kind: str
    values: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What a persona asks. `earlier` are the turns before it where there are any: user, assistant, user,
    assistant, … `checks` are the constraints whose words stand at the end of its text."""

    id: str
    row: int
    persona_id: str
    text: str
    earlier: tuple[str, ...] = ()
    checks: tuple[Constraint, ...] = ()

    @property
    def conversation(self) -> str:
        """All turns as one text, for a judge or a filter; `text` where it is the only one."""
        if not self.earlier:
            return self.text
        turns = zip(
            ("User", "Assistant") * (len(self.earlier) // 2 + 1), (*self.earlier, self.text), strict=False
        )
        return "\n\n".join(f"{who}: {said}" for who, said in turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One answer to a prompt. `token_ids` are the sampled tokens, the end of turn included (None: the engine
    gives none). What the model thought before it is `reasoning`: of that no judge sees anything, but
    `token_ids` hold it."""

    id: str
    row: int
    prompt_id: str
    index: int
    text: str
    token_ids: tuple[int, ...] | None
    finish_reason: FinishReason
    reasoning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgment:
    """One verdict on two responses in one order; `verdict` None is an unparseable one: neither a tie nor a
    label.

    `p_first` is the probability that the first is better among the verdict tokens, `verdict_prob` the
    probability that the model gave to the verdict tokens together; both are None for a verdict read from one
    text, whose wording is kept in `text`. Of several sampled texts `p_first` is the share that names the
    first, smoothed, and `verdict_prob` the share that can be read.
    """

    id: str
    row: int
    prompt_id: str
    first_id: str
    second_id: str
    judge: str
    verdict: Verdict | None
    p_first: float | None = None
    verdict_prob: float | None = None
    text: str | None = None

    @property
    def winner_id(self) -> str | None:
        """The id of the response that won, None where none did."""
        match self.verdict:
            case "first":
                return self.first_id
            case "second":
                return self.second_id
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """A chosen and a rejected answer. `margin` is the log-odds (nats) that the chosen one is better,
    calibrated over the run, and `p_chosen` the probability that belongs to it; both are None where the judge
    gives no numbers. `margin_sd` is the margin's standard deviation, where more than two answers were
    ranked."""

    id: str
    row: int
    prompt_id: str
    chosen_id: str
    rejected_id: str
    p_chosen: float | None
    margin: float | None
    margin_sd: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Evaluation's twin of a Judgment: base against tuned on one held-out prompt in one order."""

    id: str
    row: int
    prompt_id: str
    order: Literal["base_first", "tuned_first"]
    judge: str
    winner: Literal["base", "tuned", "tie"] | None
    p_tuned: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating:
    """One mark of one answer by a judge, from 1 to 10; `score` None is an unparseable one. `text` is what the
    judge wrote."""

    id: str
    row: int
    prompt_id: str
    response_id: str
    judge: str
    score: float | None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihoods:
    """The log-probability (nats) that a model gives to each of the endings of a text, or of the replies to a
    prompt; `tokens` are how many each has."""

    id: str
    row: int
    prompt_id: str
    logprobs: tuple[float, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """An item that a stage could not use, and why. `row` is the row its record would have had; `detail` says
    what about this one item (of which other it is a duplicate, say); `text` is what was written, up to
    KEPT_TEXT characters."""

    row: int
    stage: str
    record_id: str
    reason: str
    detail: str | None = None
    text: str | None = None


KEPT_TEXT = 2000
"""Characters that a Drop keeps of what was written."""
_LEFT_OUT: dict[str, Any] = {"earlier": (), "checks": (), "detail": None, "reasoning": ""}
R = TypeVar("R", bound="Record | Drop")
Record = Persona | Prompt | Response | Judgment | PreferencePair | Comparison | Rating | Likelihoods


def to_dict(record: Record | Drop) -> dict[str, Any]:
    """The record as a flat dict, in the order of its fields; `earlier`, `checks`, `detail`, `reasoning` and a
    Drop's `text` stand only where they hold something."""
    row = {name: getattr(record, name) for name in type(record).__slots__}
    if row.get("checks"):
        row["checks"] = [{"kind": check.kind, "values": check.values} for check in row["checks"]]
    for name, empty in _LEFT_OUT.items():
        if row.get(name, 0) == empty:
            del row[name]
    if isinstance(record, Drop) and record.text is None:
        del row["text"]
    return row


def from_dict(kind: type[R], row: dict[str, Any]) -> R:
    """The record that `to_dict` wrote. Raises TypeError where a field is missing or unknown."""
    for name in ("token_ids", "earlier", "logprobs", "tokens"):
        if row.get(name) is not None:
            row = {**row, name: tuple(row[name])}
    if row.get("checks"):
        row = {**row, "checks": tuple(Constraint(**check) for check in row["checks"])}
    return kind(**row)
