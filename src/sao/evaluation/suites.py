"""What is asked in an evaluation, how it is judged, and what the judge is shown.

A suite names its questions (a set that is fetched by pinned revision, or given as a file), the way of
judging, and the template. The templates are SAO's own; those of a published protocol, whose licence may not
let us ship them, are given by path.

A template for marks or for verdicts after reasons is one file with one text, or with parts under headings,
each on its own line:

    ---system---                  what stands in the judge's system message; none where there is no such part
    ---user---                    what the judge is asked (also what stands before the first heading)
    ---user, reference---         the same where the question has a right answer
    ---user, later---             the same from the second turn on; also `---system, later---`, `---user,
    later, reference---`

The part that fits most closely is shown. Fields for verdicts: {prompt}, {first}, {second}, {reference}. For
marks: {prompt} (the whole conversation before the answer), {answer}, {reference}; and by turn {question}, and
{earlier_question}, {earlier_answer}, {earlier_reference} of the turn before. What there is none of is empty.
So FastChat's question, answer and ref_answer_1 are {question}, {answer} and {reference}; in its templates for
two turns question_1, answer_1 and ref_answer_1 are the earlier ones, question_2, answer_2 and ref_answer_2
those without `earlier_`.

    python -c "from sao.evaluation.suites import SUITES; print(*SUITES)"
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sao.engines import Engine, Failure, Request, Sample, Sampling
from sao.errors import ConfigError
from sao.evaluation.known_suites import KNOWN
from sao.evaluation.questions import Question
from sao.evaluation.verdicts import parse_arena, parse_pairwise, parse_rating
from sao.records import Drop, Judgment, Message, Prompt, Rating, Response, Verdict, make_id, seed_of
from sao.stages.judging import OrderedPair
from sao.stages.rows import answer_row, index_of, verdict_row
from sao.templates import fill, load_template


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """One suite. `way`: duel (the recipe's judge, in both orders), arena (five verdicts after reasons, both
    orders), pairwise (three verdicts after reasons, both orders), rating (a mark for each turn). `questions`
    names a preset; "" where they must be given. `template` is what the judge is shown; "" for a duel, which
    takes the recipe's judging.template."""

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
            name="mtbench-pairs",
            title="MT-Bench, pairwise",
            way="pairwise",
            questions="mt_bench",
            template="pairwise",
        ),
    )
}
"""The judged suites; `tasks` and those of `sao.evaluation.known_suites` are checked by a program."""
FIELDS = {"duel": ("prompt", "first", "second"), "arena": ("prompt", "first", "second"),
          "pairwise": ("prompt", "first", "second"), "rating": ("answer",)}  # fmt: skip
"""What must stand in a template; for marks the question too, as {prompt} or {question} (`read_template`)."""
TASKS = "tasks"
_HEADING = re.compile(r"^---[ ]*(system|user)((?:[ ]*,[ ]*(?:later|reference))*)[ ]*---[ ]*$", re.MULTILINE)


def find_suites(names: Iterable[str]) -> list[Suite]:
    """The judged suites of these names, the others left out. Raises ConfigError for one that is none."""
    there = [*SUITES, *KNOWN, TASKS]
    unknown = [name for name in names if name not in there]
    if unknown:
        raise ConfigError(f"no suite {unknown[0]!r}; there are {', '.join(there)}", key="--suite")
    return [SUITES[name] for name in dict.fromkeys(names) if name in SUITES]


def said(question: Question, answers: Sequence[Response]) -> str:
    """What a judge is shown as one side's answer: the answer, or all turns where there are several."""
    parts = [answers[0].text]
    for asked, answer in zip(question.later, answers[1:], strict=True):
        parts += [f"User: {asked}", f"Assistant: {answer.text}"]
    return "\n\n".join(parts)


def ordered_pairs(
    questions: Iterable[Question],
    ours: dict[str, list[Response]],
    theirs: dict[str, list[Response]],
    key: str,
) -> Iterator[OrderedPair]:
    """Both orders of our answer and theirs to each question that both answered; none where both gave the same
    (a tie)."""
    for question in questions:
        prompt = question.prompt
        if prompt.id not in ours or prompt.id not in theirs:
            continue
        sides = [(group[0].id, said(question, group)) for group in (ours[prompt.id], theirs[prompt.id])]
        if sides[0][1] == sides[1][1]:
            continue
        our_answer, their_answer = (replace(ours[prompt.id][0], id=id_, text=text) for id_, text in sides)
        orders = ((our_answer, their_answer), (their_answer, our_answer))
        for order, (first, second) in enumerate(orders):
            id_, row = (
                make_id(key, first.id, second.id, order),
                verdict_row(index_of(prompt.row), 2, 0, 2, order),
            )
            yield OrderedPair(id_, row, prompt.id, prompt.conversation, first, second)


PARSERS: dict[str, Callable[[str], Verdict | None]] = {
    "arena": lambda text: _side(parse_arena(text)),
    "pairwise": parse_pairwise,
}


def _side(verdict: str | None) -> Verdict | None:
    """Arena's five verdicts as three; the strong ones are read again from the judgment's text where they
    count."""
    if verdict is None or "=" in verdict:
        return None if verdict is None else "tie"
    return "first" if verdict.startswith("A") else "second"


@dataclass(frozen=True, slots=True)
class Template:
    """What a judge is shown: texts by role (system, user) and by when they hold (later, reference)."""

    parts: Mapping[tuple[str, frozenset[str]], str]

    def messages(self, values: Mapping[str, str], *, later: bool = False) -> tuple[Message, ...]:
        """The chat that asks for a judgment. `values`: by field; `later`: from the second turn on."""
        holds = {word for word, so in (("later", later), ("reference", values.get("reference"))) if so}
        system, user = self._part("system", holds), self._part("user", holds)
        opening = (Message("system", system),) if system else ()
        return (*opening, Message("user", fill(user, **values)))

    def _part(self, role: str, holds: set[str]) -> str:
        fitting = [when for r, when in self.parts if r == role and when <= holds]
        closest = max(fitting, key=lambda when: (len(when), "reference" in when), default=None)
        return "" if closest is None else self.parts[role, closest]


def read_template(name: str, way: str) -> Template:
    """The parts of a template (a name of sao/templates or a file's path) for this way of judging.

    Raises ConfigError for one that is not there, that asks without a question or an answer, or that holds a
    part twice.
    """
    before, *pieces = _HEADING.split(load_template(name, FIELDS[way]))
    found = [(("user", frozenset[str]()), before.strip())] if before.strip() else []
    for role, words, text in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=True):
        found.append(((role, frozenset(re.findall("[a-z]+", words))), text.strip()))
    parts = dict(found)
    if len(parts) < len(found):
        raise ConfigError(
            f"template {name!r}: a part stands there twice (text before the first heading is the user's)",
            key="template",
        )
    if ("user", frozenset()) not in parts:
        raise ConfigError(
            f"template {name!r}: no part for the user. Put a line ---user--- before what the judge is asked",
            key="template",
        )
    needed = [("question", "prompt"), ("answer",)] if way == "rating" else [(field,) for field in FIELDS[way]]
    for (role, when), text in parts.items():
        for fields in needed if role == "user" else ():
            if not any(f"{{{field}}}" in text for field in fields):
                part = ", ".join([role, *sorted(when)])
                raise ConfigError(
                    f"template {name!r}: {{{fields[-1]}}} does not stand in its part {part!r}",
                    key="template field",
                )
    return Template(parts)


def references_of(questions: Iterable[Question]) -> dict[str, str]:
    """The right answers as a judge of whole conversations is shown them, by question id; questions without
    one are left out."""
    found: dict[str, str] = {}
    for question in questions:
        texts = [question.reference(turn) for turn in range(1 + len(question.later))]
        numbered = [f"Turn {turn}: {text}" for turn, text in enumerate(texts, 1) if text]
        if numbered:
            found[question.prompt.id] = "\n\n".join(numbered) if question.later else texts[0]
    return found


def judge_by_text(
    pairs: Iterable[OrderedPair], engine: Engine, suite: Suite, template: str, max_tokens: int,
    done: Container[str],
    name: str, *, references: Mapping[str, str] | None = None,
) -> Iterator[Judgment | Drop]:  # fmt: skip
    """Verdicts after reasons, at temperature 0, for the pairs that are not `done`; what is cut off or has
    none is unparseable. `references`: the right answers by question id (`references_of`)."""
    shown, parse = read_template(template, suite.way), PARSERS[suite.way]
    waiting: dict[str, OrderedPair] = {}

    def requests() -> Iterator[Request]:
        for pair in pairs:
            if pair.id not in done:
                waiting[pair.id] = pair
                values = {"prompt": pair.prompt, "first": pair.first.text, "second": pair.second.text}
                values["reference"] = (references or {}).get(pair.prompt_id, "")
                yield _request(pair.id, shown.messages(values), max_tokens)

    for completion in engine.generate(requests()):
        pair = waiting.pop(completion.id)
        if isinstance(completion, Failure):
            yield Drop(row=pair.row, stage="verdicts", record_id=pair.id, reason=completion.reason)
            continue
        verdict = None if completion.finish_reason == "length" else parse(completion.text)
        yield Judgment(
            id=pair.id, row=pair.row, prompt_id=pair.prompt_id, first_id=pair.first.id,
            second_id=pair.second.id, judge=name,
            verdict=verdict, text=completion.text,
        )  # fmt: skip


def rate(
    questions: Iterable[Question], answers: dict[str, list[Response]], engine: Engine, template: str,
    max_tokens: int, key: str,
    done: Container[str], name: str,
) -> Iterator[Rating | Drop]:  # fmt: skip
    """A mark for each turn of each question, at temperature 0, that is not `done`. Where a turn has a right
    answer the judge is shown it, if the template has a place for it."""
    shown, questions = read_template(template, "rating"), list(questions)
    most = max((1 + len(question.later) for question in questions), default=1)
    waiting: dict[str, tuple[int, Response]] = {}

    def requests() -> Iterator[Request]:
        for question in questions:
            for turn, answer in enumerate(answers.get(question.prompt.id, ())):
                # Rows are places in the stage's order: each question has as many as the longest, so that none
                # is met twice.
                rating_id, row = make_id(key, answer.id), answer_row(question.prompt, most, turn)
                if rating_id in done:
                    continue
                waiting[rating_id] = row, answer
                values = _by_turn(question, answers, turn)
                yield _request(rating_id, shown.messages(values, later=turn > 0), max_tokens)

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


def _by_turn(question: Question, answers: dict[str, list[Response]], turn: int) -> dict[str, str]:
    """What a judge who marks a turn is shown, by field; of the turn before it too, where there is one."""
    asked, said_ = (question.prompt.text, *question.later), answers[question.prompt.id]
    return {
        "prompt": turn_prompt(question, answers, turn).conversation,
        "question": asked[turn],
        "answer": said_[turn].text,
        "reference": question.reference(turn),
        "earlier_question": asked[turn - 1] if turn else "",
        "earlier_answer": said_[turn - 1].text if turn else "",
        "earlier_reference": question.reference(turn - 1) if turn else "",
    }


def turn_prompt(question: Question, answers: dict[str, list[Response]], turn: int) -> Prompt:
    """What is asked in a turn (from 0), after one's own answers to the turns before it."""
    prompt = question.prompt
    if turn == 0:
        return prompt
    before = answers[prompt.id][:turn]
    turns = [
        prompt.text,
        *(text for a, q in zip(before, question.later, strict=False) for text in (a.text, q)),
    ]
    return replace(
        prompt, id=make_id(prompt.id, turn), earlier=(*prompt.earlier, *turns[:-1]), text=turns[-1]
    )


def _request(id_: str, messages: tuple[Message, ...], max_tokens: int) -> Request:
    return Request(messages, (Sample(id_, seed_of(id_)),), Sampling(max_tokens, temperature=0.0))
