"""What the records of a preview come to: figures of prompts, answers and judges."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from sao.pipeline.reader import Reader
from sao.preview.look import Pair
from sao.preview.texts import distinct_share, is_looping, mean_words
from sao.records import Drop, Judgment, Prompt, Response
from sao.results.base import Rate
from sao.results.preview import AnswerFigures, JudgeWay, PromptWay, ShownAnswers, ShownText
from sao.statistics import Z95, bonferroni, mean, ratio_ci, wilson

SHOWN = 3
"""Texts that are shown of each way."""
CUT, EMPTY = "cut off at max_tokens", "empty"
"""Reasons of Drops."""
LEAST_P = 1e-9
"""Probabilities nearer to 0 or 1 count as this far from it."""


def prompt_figures(way: PromptWay, run: Reader) -> PromptWay:
    """A way with what became of its prompts."""
    stages = [run.stage("prompts")]
    if (filtered := run.stage("checkable")).path != stages[0].path:
        stages.append(filtered)
    written = {prompt.row: prompt.text for prompt in stages[0].records(Prompt)}
    lost = {drop.row: drop for stage in stages for drop in stage.drops()}
    usable = [text for row, text in written.items() if row not in lost]
    texts = [
        ShownText(text=written.get(row) or (lost[row].text or ""), reason=_reason(lost.get(row)))
        for row in sorted({*written, *lost})[:SHOWN]
    ]
    return way.model_copy(
        update={
            "asked": len({*written, *lost}),
            "max_tokens": run.config.prompts.max_tokens,
            "usable": len(usable),
            "reasons": dict(Counter(drop.reason for drop in lost.values()).most_common()),
            "words": mean_words(usable),
            "distinct": distinct_share(list(written.values())),
            "texts": texts,
        }
    )


def _reason(drop: Drop | None) -> str | None:
    return None if drop is None else drop.reason


def answer_figures(run: Reader, tokens_each: float | None, recipe_max_tokens: int) -> AnswerFigures:
    """What became of the answers to the prompts of a run."""
    stage = run.stage("responses")
    prompts = list(run.asked(held_out=False))
    finished, drops = list(stage.records(Response)), list(stage.drops())
    texts = [answer.text for answer in finished]
    written = [*texts, *(drop.text or "" for drop in drops)]
    reasons = Counter(drop.reason for drop in drops)
    return AnswerFigures(
        prompts=len(prompts),
        asked=len(finished) + len(drops),
        max_tokens=run.config.responses.max_tokens,
        recipe_max_tokens=recipe_max_tokens,
        cut=reasons[CUT],
        empty=reasons[EMPTY],
        failed=reasons.total() - reasons[CUT] - reasons[EMPTY],
        words=mean_words(texts),
        tokens=tokens_each,
        distinct=distinct_share(written),
        looping=sum(map(is_looping, written)),
        texts=_shown_answers(prompts, finished, drops, run.config.responses.n),
    )


def _shown_answers(
    prompts: Sequence[Prompt], finished: Iterable[Response], drops: Iterable[Drop], n: int
) -> list[ShownAnswers]:
    by_row = {drop.row: ShownText(text=drop.text or "", reason=drop.reason) for drop in drops}
    by_row |= {answer.row: ShownText(text=answer.text) for answer in finished}
    shown = []
    for prompt in prompts[:SHOWN]:
        first = prompt.row // 2 * n
        answers = [by_row[row] for row in range(first, first + n) if row in by_row]
        shown.append(ShownAnswers(prompt=prompt.conversation, answers=answers))
    return shown


# Judges.


def judge_figures(
    way: JudgeWay, pairs: Sequence[Pair], verdicts: Iterable[Judgment], ways: int = 1
) -> JudgeWay:
    """A way with its verdicts on the pairs; it is one of so many `ways`."""
    said = {(v.first_id, v.second_id): v for v in verdicts}
    readable = [v for v in said.values() if _points(v) is not None]
    both = [_both_orders(pair, said) for pair in pairs]
    read_twice = [pair for pair in both if pair is not None]
    masses = [v.verdict_prob for v in said.values() if v.verdict_prob is not None]
    accuracy, of_all = _accuracy(pairs, said, Z95), _accuracy(pairs, said, bonferroni(ways))
    return way.model_copy(
        update={
            "pairs": len(pairs),
            "verdicts": len(readable),
            "unparseable": sum(_shown_twice(pair) for pair in pairs) - len(readable),
            "mass": mean(masses) if masses else None,
            "first_slot": mean([points for v in readable if (points := _points(v)) is not None])
            if readable
            else None,
            "flips": mean([float(one != other) for one, other in read_twice]) if read_twice else None,
            "accuracy": accuracy,
            "least": of_all.ci95[0] if of_all else None,
        }
    )


def _shown_twice(pair: Pair) -> int:
    """Verdicts that are asked about a pair; equal texts are not judged."""
    return 2 if pair.answers[0].text != pair.answers[1].text else 0


def _points(verdict: Judgment) -> float | None:
    """1 for the answer that stands first, 0 for the other one, a half for a tie; None for an unparseable
    verdict."""
    return {"first": 1.0, "second": 0.0, "tie": 0.5}.get(verdict.verdict or "")


def _both_orders(pair: Pair, said: dict[tuple[str, str], Judgment]) -> tuple[float, float] | None:
    """The points of the pair's first answer in both orders, None where one cannot be read."""
    a, b = (answer.id for answer in pair.answers)
    one, other = said.get((a, b)), said.get((b, a))
    if one is None or other is None or (x := _points(one)) is None or (y := _points(other)) is None:
        return None
    return x, 1 - y


def _accuracy(pairs: Sequence[Pair], said: dict[tuple[str, str], Judgment], z: float) -> Rate | None:
    """How often both orders together favour the better answer, with its interval of `z` standard errors; None
    without gold pairs. Pairs of one source hang together. The interval is no narrower than that of as many
    independent pairs as share no answer: of few sources their spread is not well known."""
    points: dict[str, list[float]] = {}
    own = sum(pair.better is not None and not pair.again for pair in pairs)
    for pair in pairs:
        if pair.better is not None:
            points.setdefault(pair.source or pair.prompt.id, []).append(_right(pair, said))
    if not points:
        return None
    hits, of = [sum(each) for each in points.values()], [len(each) for each in points.values()]
    rate, clustered = ratio_ci(hits, of, z)
    apart = wilson(rate * own, own, z)
    return Rate(rate=rate, ci95=(min(clustered[0], apart[0]), max(clustered[1], apart[1])), n=sum(of))


def _right(pair: Pair, said: dict[tuple[str, str], Judgment]) -> float:
    """1 where both orders together favour the better answer; a half where they favour neither, or where a
    verdict cannot be read."""
    if (both := _both_orders(pair, said)) is None:
        return 0.5
    a, b = (answer.id for answer in pair.answers)
    probabilities = said[a, b].p_first, said[b, a].p_first
    if None in probabilities:
        lean = sum(both) - 1
    else:
        lean = _log_odds(probabilities[0]) - _log_odds(probabilities[1])
    points = 0.5 if lean == 0 else float(lean > 0)
    return points if pair.better == a else 1 - points


def _log_odds(p: float | None) -> float:
    p = min(max(p if p is not None else 0.5, LEAST_P), 1 - LEAST_P)
    return math.log(p / (1 - p))
