"""Answers to be read: questions and the answers of all models in, one Markdown file out, without any judge.

Under each question stand its turns, and under each turn what each model said, as a quotation, so that an
answer's own headings and lists cannot be taken for the file's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sao.evaluation.questions import Question
from sao.evaluation.sanity_checks import cut_off_and_degenerate
from sao.evaluation.suites import Suite
from sao.pipeline.players import Player
from sao.pipeline.two_models import Answers, TwoModels
from sao.records import Response
from sao.results.evaluation import AnswersOnly
from sao.store.files import write_atomic


def write_answers(
    models: TwoModels,
    suite: Suite,
    source: str,
    questions: Sequence[Question],
    players: Sequence[Player],
    sides: Mapping[str, Answers],
) -> AnswersOnly:
    """Write answers-SUITE.md; what is wrong with the answers as a whole is in the result."""
    file = f"answers-{suite.name}.md"
    lines = _lines(models, suite, source, questions, players, sides)
    write_atomic(models.root / file, "\n".join(lines) + "\n")
    cut_off, wrong = cut_off_and_degenerate(sides)
    return AnswersOnly(
        title=suite.title,
        n=len(questions),
        questions=source,
        template="",
        degenerate=wrong,
        cut_off=cut_off,
        missing={role: len(questions) - len(side) for role, side in sides.items()},
        by_category={},
        file=file,
    )


def _lines(
    models: TwoModels,
    suite: Suite,
    source: str,
    questions: Sequence[Question],
    players: Sequence[Player],
    sides: Mapping[str, Answers],
) -> Iterator[str]:
    how = models.config.responses
    yield f"# {suite.title}: answers to read"
    yield ""
    sampling = f"temperature {how.temperature:g}, at most {how.max_tokens} tokens"
    yield f"{len(questions)} questions ({source}); {sampling}."
    yield ""
    for player in players:
        yield f"- **{player.role}**: {player.title}"
    for number, question in enumerate(questions, 1):
        yield ""
        yield f"## {' · '.join(filter(None, (question.key or str(number), question.category)))}"
        turns = [question.prompt.conversation, *question.later]
        for turn, asked in enumerate(turns):
            yield ""
            yield f"**Turn {turn + 1}.** {asked.strip()}" if question.later else asked.strip()
            for player in players:
                own = sides[player.role].get(question.prompt.id, ())
                yield from _answer(player.role, own[turn] if turn < len(own) else None)


def _answer(role: str, answer: Response | None) -> Iterator[str]:
    """A model's answer as a quotation, with its length."""
    yield ""
    if answer is None:
        yield f"**{role}**: no answer"
        return
    cut = ", cut off" if answer.finish_reason == "length" else ""
    yield f"**{role}** ({len(answer.text.split())} words{cut}):"
    yield ""
    yield from (f"> {line}".rstrip() for line in (answer.text.strip() or "(empty)").splitlines())
