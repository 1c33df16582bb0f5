"""A preview as text, 100 columns wide: texts as they are, figures, what to change."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from sao.report.status import duration
from sao.results.preview import (
    AnswerFigures,
    Change,
    GoldPairs,
    JudgeWay,
    Preview,
    PromptWay,
    ShownText,
)
from sao.tables import MISSING, Column, number, percent, percent_with_interval, plain_table

WIDTH, CUT = 100, 180
"""Characters of a line, and of a text that is shown."""
SOURCES = {
    "constraints": "the model's own answers to prompts with constraints that a program checks",
    "made up": "texts made up by the constraints' own generators, since the model's own hardly differed",
    "oracle": "the model's own answers, of which the toy world's oracle knows the better one",
}
"""Where the pairs come from whose better answer is known."""
FEW = "So few pairs tell 0.5 from 0.7 only roughly."


def show_preview(preview: Preview) -> str:
    """The preview as text."""
    lines = [f"{preview.model}, run by {preview.engine}", *_wrapped(preview.notes)]
    if preview.problem is not None:
        return "\n".join([*lines, "", *_wrap(preview.problem), "", *_changes(preview.changes)])
    lines += ["", *_prompts(preview)]
    if preview.answers is not None:
        lines += ["", *_answers(preview.answers)]
    if preview.judging:
        lines += ["", *_judges(preview)]
    lines += ["", *_costs(preview), "", *_changes(preview.changes)]
    if preview.recipe is not None:
        lines += ["", f"The recipe with these changes: {preview.recipe}", f"Run it: sao run {preview.recipe}"]
    return "\n".join(lines)


# Prompts.


def _prompts(preview: Preview) -> Iterator[str]:
    yield "PROMPTS"
    for way in preview.prompts:
        yield f"{way.name}{' (the recipe)' if way.is_recipe else ''}"
        if way.skipped is not None:
            yield from _wrap(f"not tried: {way.skipped}", "  ")
        for shown in way.texts:
            yield from _text(shown, "  ")
    tried = [way for way in preview.prompts if way.skipped is None]
    columns = [
        Column("way", width=18),
        Column("usable", "right", width=9),
        Column("words", "right", width=6),
        Column("distinct", "right", width=8),
        Column("dropped, by reason", gap=2),
    ]
    yield ""
    yield from plain_table(columns, [_prompt_row(way, way.name == preview.best) for way in tried])


def _prompt_row(way: PromptWay, is_best: bool) -> list[str]:
    reasons = ", ".join(f"{reason} {n}" for reason, n in way.reasons.items())
    return [
        f"{way.name}{' *' if is_best else ''}",
        f"{way.usable} of {way.asked}",
        number(way.words, 0),
        percent(way.distinct, 0),
        reasons,
    ]


# Answers.


def _answers(answers: AnswerFigures) -> Iterator[str]:
    yield "ANSWERS"
    for shown in answers.texts:
        yield from _wrap(f"? {_cut(shown.prompt)}", "", "  ")
        for text in shown.answers:
            yield from _text(text, "  ")
    limit = f"{answers.max_tokens} tokens"
    if answers.max_tokens < answers.recipe_max_tokens:
        limit += f" (the preview's limit; the recipe's is {answers.recipe_max_tokens:,})"
    yield ""
    yield from _wrap(
        f"{answers.asked} answers to {answers.prompts} prompts: {answers.cut} cut off at {limit}, "
        f"{answers.empty} empty, {answers.failed} failed, {answers.looping} repeat themselves. Mean "
        f"{number(answers.words, 0)} words (finished ones), {number(answers.tokens, 0)} tokens (all); "
        f"distinct {percent(answers.distinct, 0)}."
    )


# Verdicts.


def _judges(preview: Preview) -> Iterator[str]:
    yield "VERDICTS, each pair in both orders"
    columns = [
        Column("way", width=18),
        Column("pairs", "right", width=5),
        Column("unread", "right", width=6),
        Column("mass", "right", width=5),
        Column("first slot", "right", width=10),
        Column("flips", "right", width=6),
        Column("right", "right", width=17),
        Column("of", "right", width=3),
    ]
    tried = [way for way in preview.judging if way.skipped is None]
    yield from plain_table(columns, map(_judge_row, tried))
    for way in preview.judging:
        keys = ", ".join(f"{key} {value!r}" for key, value in way.settings.items() if key != "judging.method")
        if way.skipped is not None:
            yield from _wrap(f"{way.name} was not tried: {way.skipped}", "", "  ")
        elif keys:
            yield from _wrap(f"{way.name}: {keys}", "", "  ")
    seen = [way.pairs for way in tried]
    if seen and min(seen) < max(seen):
        more = " and ".join(way.name for way in tried if way.pairs > min(seen))
        says = f"All ways judged the first {min(seen)} pairs; more were judged by {more} only."
        yield from _wrap(says)
    yield from _gold(preview.gold)


def _judge_row(way: JudgeWay) -> list[str]:
    accuracy = way.accuracy
    right = MISSING if accuracy is None else percent_with_interval(accuracy.rate, accuracy.ci95, 0)
    return [
        way.name, str(way.pairs), str(way.unparseable), number(way.mass), percent(way.first_slot, 0),
        percent(way.flips, 0), right, str(accuracy.n) if accuracy else MISSING,
    ]  # fmt: skip


def _gold(gold: GoldPairs | None) -> Iterator[str]:
    if gold is None or not gold.pairs:
        return
    differing = f" Answers to {gold.differing} of {gold.prompts} prompts differed." if gold.prompts else ""
    again = (
        f" {gold.again} of the {gold.pairs} pairs share an answer with an earlier one." if gold.again else ""
    )
    yield from _wrap(
        f"right: on pairs whose better answer is known: {SOURCES[gold.source]}.{differing}{again} {FEW}"
    )


# Costs.


def _costs(preview: Preview) -> Iterator[str]:
    yield f"TIME: {duration(preview.seconds)} for this look, {duration(preview.loading)} of it to load"
    columns = [
        Column("step", width=26),
        Column("items", "right", width=9),
        Column("tokens", "right", width=12),
        Column("time", "right", width=12),
    ]
    rows = [[s.name, f"{s.items:,}", f"{s.tokens:,}", f"{s.seconds:.1f} s"] for s in preview.spent]
    yield from plain_table(columns, rows)
    yield ""
    yield from _run_cost(preview, columns)


def _run_cost(preview: Preview, columns: Sequence[Column]) -> Iterator[str]:
    cost, answers = preview.run, preview.answers
    if cost.unknown is not None:
        yield from _wrap(f"What the run will take is not known: {cost.unknown}.")
        return
    total = "not known" if cost.seconds is None else duration(cost.seconds)
    speed = f"{number(cost.tokens_per_second, 0)} tokens/s"
    verdict = f"{number(cost.seconds_per_verdict)} s a verdict"
    is_short = answers is not None and answers.max_tokens < answers.recipe_max_tokens
    limit = f" Answers count with {answers.max_tokens} tokens at most." if answers and is_short else ""
    rounds = f", all {cost.rounds} rounds" if cost.rounds > 1 else ""
    yield from _wrap(
        f"The whole run of the recipe here{rounds}, at {speed} and {verdict}: about {total}. A run's larger "
        f"batches may be faster. Training is computed from the speed of reading.{limit}"
    )
    rows = [
        [s.name, f"{s.items:,}", f"{s.tokens:,}", MISSING if s.seconds is None else duration(s.seconds)]
        for s in cost.stages
    ]
    yield from plain_table([Column("stage", width=26), *columns[1:]], rows)


def _changes(changes: Sequence[Change]) -> Iterator[str]:
    yield "WHAT TO CHANGE"
    if not changes:
        yield "Nothing that these few texts show."
    for change in changes:
        yield from _wrap(f"- {change.says}", "", "  ")
        if change.settings:
            keys = "; ".join(f"{key}: {value}" for key, value in change.settings.items())
            yield from _wrap(f"in the recipe: {keys}", "  ")


# Texts.


def _text(shown: ShownText, indent: str) -> Iterator[str]:
    """A text on a few lines, with the reason where it was dropped."""
    dropped = f"[dropped: {shown.reason}] " if shown.reason is not None else ""
    yield from _wrap(f"- {dropped}{_cut(shown.text) or '(nothing)'}", indent, f"{indent}  ")


def _cut(text: str) -> str:
    line = " ".join(text.replace("\n", " ⏎ ").split())
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= CUT else f"{line[:CUT].rpartition(' ')[0] or line[:CUT]} …"


def _wrapped(texts: Sequence[str]) -> list[str]:
    return [line for text in texts for line in _wrap(text)]


def _wrap(text: str, first: str = "", later: str | None = None) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=first if later is None else later
    )
