"""What training gained on held-out prompts whose constraints a program can check (`sao.checks`). No judge has
a part in it.

Only kinds that between 5 and 95 % of the base's answers keep are counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from sao import checks
from sao.analysis.audit.constraints import KindTally
from sao.checks.degenerate import CONSTANT
from sao.records import Prompt, Response
from sao.results.checks import (
    CheckedGain,
    ChecksOutcome,
    KindGain,
    Texts,
)
from sao.stages import pairs
from sao.statistics import bootstrap_ci, mean

HeldOut = tuple[Prompt, Response, Response]
"""A held-out prompt, the base's answer, the trained model's."""


def outcome(
    rows: Sequence[HeldOut],
    resamples: int,
    seed: int,
    logprobs: Mapping[str, float] = MappingProxyType({}),
) -> ChecksOutcome | None:
    """What training gained on held-out prompts with constraints; None where none has any.

    Args:
        rows: Held-out prompts with both models' answers.
        resamples: Resamples of the prompts for the intervals.
        seed: Of the resamples.
        logprobs: The log-probability of an answer by the base model, in nats a token, by the answer's id,
            where it is known.

    """
    rows = [row for row in rows if row[0].checks]
    if not rows:
        return None
    kinds = KindTally((prompt, [base.text]) for prompt, base, _ in rows)

    def gain(names: Sequence[str]) -> CheckedGain:
        return _gain(rows, [name for name in names if kinds.counts(name)], resamples, seed)

    return ChecksOutcome(
        trained=gain(checks.TRAINED),
        unseen=gain(checks.UNSEEN),
        kinds=[
            KindGain(
                **dict(_gain(rows, [kind], resamples, seed)),
                kind=kind,
                trained=kind in checks.TRAINED,
                counted=kinds.counts(kind),
            )
            for kind in kinds.kinds
        ],
        left_out=kinds.left_out,
        base=_texts([base for _, base, _ in rows], logprobs),
        tuned=_texts([tuned for _, _, tuned in rows], logprobs),
    )


def kept_shares(rows: Sequence[HeldOut], names: Sequence[str]) -> list[tuple[str, float, float]]:
    """(id, share that the base's answer keeps, share that the trained model's keeps) of each prompt with
    constraints of these kinds."""
    found = []
    for prompt, base, tuned in rows:
        asked = [check for check in prompt.checks if check.kind in names]
        before, after = checks.score(base.text, asked), checks.score(tuned.text, asked)
        if before is not None and after is not None:
            found.append((prompt.id, before, after))
    return found


def _gain(rows: Sequence[HeldOut], names: Sequence[str], resamples: int, seed: int) -> CheckedGain:
    """The gain on prompts with constraints of these kinds, and how much of it brevity alone earns."""
    shares = kept_shares(rows, names)
    if not shares:
        return CheckedGain(n=0)
    short, constant = [], []
    for prompt, base, tuned in rows:
        asked = [check for check in prompt.checks if check.kind in names]
        if asked:
            cut = cut_to_words(base.text, len(tuned.text.split()))
            short.append(checks.score(cut, asked) or 0.0)
            constant.append(checks.score(CONSTANT, asked) or 0.0)
    before, after = [share for _, share, _ in shares], [share for _, _, share in shares]
    gains = [b - a for a, b in zip(before, after, strict=True)]
    brevity = max(0.0, mean(short) - mean(before))
    start = short if brevity else before
    beyond = [b - a for a, b in zip(start, after, strict=True)]
    return CheckedGain(
        n=len(shares),
        before=mean(before),
        after=mean(after),
        gain=mean(gains),
        ci95=bootstrap_ci(gains, resamples, seed),
        brevity=brevity,
        beyond_brevity=mean(beyond),
        beyond_ci95=bootstrap_ci(beyond, resamples, seed),
        constant=mean(constant),
    )


def cut_to_words(text: str, most: int) -> str:
    """The beginning of a text that has at most so many words, as it stands, cut at the end of a sentence or
    line where there is one; the text itself where it is short enough."""
    words = list(re.finditer(r"\S+", text))
    if len(words) <= most:
        return text
    beginning = text[: words[most - 1].end()] if most else ""
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s)|\S(?=[^\S\n]*\n)", f"{beginning} ")]
    return beginning[: ends[-1]] if ends else beginning


def _texts(answers: Sequence[Response], logprobs: Mapping[str, float]) -> Texts:
    times = Counter(answer.text for answer in answers)
    known = [logprobs[answer.id] for answer in answers if answer.id in logprobs]
    return Texts(
        words=mean([len(answer.text.split()) for answer in answers]),
        repetition=mean([pairs.repetition(answer.text) for answer in answers]),
        finished=mean(
            [float(answer.finish_reason == "stop" and bool(answer.text.strip())) for answer in answers]
        ),
        distinct=mean([float(times[answer.text] == 1) for answer in answers]),
        base_logprob=mean(known) if known else None,
    )
