"""What is asked in an evaluation, how it is judged, and what the judge is shown.

A suite names its questions (a set that is fetched by pinned revision, or given as a file), the way of judging, and the
template. The templates are SAO's own; those of a published protocol, whose licence may not let us ship them, are given by path.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sao.engines import Engine, Failure, Message, Request, Sample, Sampling
from sao.errors import ConfigError
from sao.evaluation.questions import Question
from sao.evaluation.verdicts import parse_arena, parse_pairwise, parse_rating
from sao.judging import Duel
from sao.templates import fill, load_template
from sao.types import Drop, Judgment, Prompt, Rating, Response, Verdict, make_id, seed_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """One suite. `way`: duel (the recipe's judge, in both orders), arena (five verdicts after reasons, both orders), pairwise
    (three verdicts after reasons, both orders), rating (a mark for each turn). `questions` names a preset; "" where they must be
    given. `template` is what the judge is shown; "" for a duel, which takes the recipe's judging.template."""

    name: str
    title: str
    way: Literal["duel", "arena", "pairwise", "rating"]
    questions: str = ""
    template: str = ""


SUITES = {
    suite.name: suite
    for suite in (
        Suite(name="heldout", title="held-out prompts", way="duel"),
        Suite(name="alpaca", title="AlpacaEval", way="duel", questions="alpaca_eval"),
        Suite(name="arena", title="Arena-Hard", way="arena", questions="arena_hard", template="arena"),
        Suite(name="mtbench", title="MT-Bench", way="rating", questions="mt_bench", template="rating"),
        Suite(
            name="mtbench-pairs", title="MT-Bench, pairwise", way="pairwise", questions="mt_bench", template="pairwise"
        ),
    )
}
"""The judged suites; `tasks` (sao.evaluation.tasks) is not judged."""
FIELDS = {"duel": ("prompt", "first", "second"), "arena": ("prompt", "first", "second"),
          "pairwise": ("prompt", "first", "second"), "rating": ("prompt", "answer")}  # fmt: skip
TASKS = "tasks"


def find_suites(names: Iterable[str]) -> list[Suite]:
    """The judged suites of these names, `tasks` left out. Raises ConfigError for one that is none."""
    unknown = [name for name in names if name not in SUITES and name != TASKS]
    if unknown:
        raise ConfigError(f"no suite {unknown[0]!r}; there are {', '.join([*SUITES, TASKS])}")
    return [SUITES[name] for name in names if name != TASKS]


def said(question: Question, answers: Sequence[Response]) -> str:
    """What a judge is shown as one side's answer: the answer, or all turns where there are several."""
    parts = [answers[0].text]
    for asked, answer in zip(question.later, answers[1:], strict=True):
        parts += [f"User: {asked}", f"Assistant: {answer.text}"]
    return "\n\n".join(parts)


def duels(
    questions: Iterable[Question], ours: dict[str, list[Response]], theirs: dict[str, list[Response]], key: str
) -> Iterator[Duel]:
    """Both orders of our answer and theirs to each question that both answered; none where both gave the same (a tie)."""
    for question in questions:
        prompt = question.prompt
        if prompt.id not in ours or prompt.id not in theirs:
            continue
        sides = [(group[0].id, said(question, group)) for group in (ours[prompt.id], theirs[prompt.id])]
        if sides[0][1] == sides[1][1]:
            continue
        one, other = (replace(ours[prompt.id][0], id=id_, text=text) for id_, text in sides)
        for order, (x, y) in enumerate(((one, other), (other, one))):
            yield Duel(make_id(key, x.id, y.id, order), 2 * prompt.row + order, prompt.id, prompt.conversation, x, y)


PARSERS: dict[str, Callable[[str], Verdict | None]] = {
    "arena": lambda text: _side(parse_arena(text)),
    "pairwise": parse_pairwise,
}


def _side(verdict: str | None) -> Verdict | None:
    """Arena's five verdicts as three; the strong ones are read again from the judgment's text where they count."""
    if verdict is None or "=" in verdict:
        return None if verdict is None else "tie"
    return "first" if verdict.startswith("A") else "second"


def judge_by_text(
    pairs: Iterable[Duel], engine: Engine, suite: Suite, template: str, max_tokens: int, done: Container[str], name: str
) -> Iterator[Judgment | Drop]:
    """Verdicts after reasons, at temperature 0, for the duels that are not `done`; what is cut off or has none is unreadable."""
    text, parse = load_template(template, FIELDS[suite.way]), PARSERS[suite.way]
    waiting: dict[str, Duel] = {}

    def requests() -> Iterator[Request]:
        for duel in pairs:
            if duel.id not in done:
                waiting[duel.id] = duel
                shown = fill(text, prompt=duel.prompt, first=duel.first.text, second=duel.second.text)
                yield _request(duel.id, shown, max_tokens)

    for completion in engine.generate(requests()):
        duel = waiting.pop(completion.id)
        if isinstance(completion, Failure):
            yield Drop(row=duel.row, stage="verdicts", record_id=duel.id, reason=completion.reason)
            continue
        verdict = None if completion.finish_reason == "length" else parse(completion.text)
        yield Judgment(
            id=duel.id, row=duel.row, prompt_id=duel.prompt_id, first_id=duel.first.id, second_id=duel.second.id, judge=name,
            verdict=verdict, text=completion.text,
        )  # fmt: skip


def rate(
    questions: Iterable[Question], answers: dict[str, list[Response]], engine: Engine, template: str, max_tokens: int, key: str,
    done: Container[str], name: str,
) -> Iterator[Rating | Drop]:  # fmt: skip
    """A mark for each turn of each question, at temperature 0, that is not `done`."""
    text = load_template(template, FIELDS["rating"])
    waiting: dict[str, tuple[int, Response]] = {}

    def requests() -> Iterator[Request]:
        for question in questions:
            for turn, answer in enumerate(answers.get(question.prompt.id, ())):
                rating_id, row = make_id(key, answer.id), question.prompt.row * (1 + len(question.later)) + turn
                if rating_id in done:
                    continue
                waiting[rating_id] = row, answer
                yield _request(rating_id, _shown(text, question, answers, turn), max_tokens)

    for completion in engine.generate(requests()):
        row, answer = waiting.pop(completion.id)
        if isinstance(completion, Failure):
            yield Drop(row=row, stage="ratings", record_id=completion.id, reason=completion.reason)
            continue
        score = None if completion.finish_reason == "length" else parse_rating(completion.text)
        yield Rating(
            id=completion.id,
            row=row,
            prompt_id=answer.prompt_id,
            response_id=answer.id,
            judge=name,
            score=score,
            text=completion.text,
        )


def _shown(template: str, question: Question, answers: dict[str, list[Response]], turn: int) -> str:
    before = turn_prompt(question, answers, turn).conversation
    return fill(template, prompt=before, answer=answers[question.prompt.id][turn].text)


def turn_prompt(question: Question, answers: dict[str, list[Response]], turn: int) -> Prompt:
    """What is asked in a turn (from 0), after one's own answers to the turns before it."""
    prompt = question.prompt
    if turn == 0:
        return prompt
    before = answers[prompt.id][:turn]
    turns = [prompt.text, *(text for a, q in zip(before, question.later, strict=False) for text in (a.text, q))]
    return replace(prompt, id=make_id(prompt.id, turn), earlier=(*prompt.earlier, *turns[:-1]), text=turns[-1])


def _request(id_: str, text: str, max_tokens: int) -> Request:
    return Request((Message("user", text),), (Sample(id_, seed_of(id_)),), Sampling(max_tokens, temperature=0.0))
