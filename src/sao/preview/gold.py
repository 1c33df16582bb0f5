"""Pairs of answers of which a program knows the better one: the model's own answers to prompts with
constraints, or, where these hardly differ, texts by the constraints' own generators; in the toy world its
oracle."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from sao import checks
from sao.preview.budget import (
    ANSWERS_EACH,
    EXPECTED_TOKENS,
    GOLD,
    Budget,
    Found,
    Pace,
    checked_prompts,
    checked_tokens,
    more_prompts,
)
from sao.preview.look import Asked, Look, Pair
from sao.preview.ways import BRIEF
from sao.records import Prompt, Response, make_id
from sao.results.preview import GoldPairs, GoldSource
from sao.stages import rows

STEP = "checked answers"
"""The step in the preview's notebook."""
LEAST = 5
"""Sampled pairs that share no answer; below, made-up ones stand in."""
CONSTRAINTS = 2
"""Constraints of a prompt, at least: the more there are, the more often answers differ."""
LEAST_KINDS = 4
"""Kinds whose constraints some answers keep and others do not, from which on only these are asked again."""
MADE_UP = 20
"""Made-up pairs."""
QUESTIONS = (
    "How do I keep bread fresh for longer?",
    "What should I look at before I buy a used bicycle?",
    "Explain how a refrigerator works.",
    "How can I learn the names of my new colleagues quickly?",
)
"""What made-up pairs answer where the model wrote no usable prompt."""
Score = Callable[[Prompt, str], float | None]


@dataclass(kw_only=True)
class Gold:
    """Pairs of which a program knows the better answer, made of the usable prompts turn by turn."""

    look: Look
    prompts: Sequence[Prompt]
    oracle: Callable[[str, str], float | None] | None
    found: list[Pair] = field(default_factory=list)
    """Pairs of the model's own answers so far, those last with an answer that stands in an earlier one."""
    turns: int = 0
    """Usable prompts that were taken so far; one that is taken twice counts twice."""
    answered: int = 0
    """Prompts that were answered for the pairs so far."""

    def ask(self, n: int) -> list[Pair]:
        """Take the next `n` of the usable prompts, in the toy world as they are, else with constraints: their
        pairs."""
        numbers = range(self.turns, self.turns + n)
        if self.oracle is not None:
            asked = _numbered(self.prompts, numbers)
        else:
            kinds = kinds_that_differ(self.found)
            asked = checkable(self.prompts, numbers, self.look.config.seed, kinds)
        new = self._sampled(asked)
        self.found = last_again([*self.found, *new])
        self.turns += n
        self.answered += len(asked)
        return new

    def ask_more(self, pace: Pace, plain: int, judged: int = 0) -> list[Pair]:
        """Take as many more prompts as the time allows, where pairs were found so far. `judged` of these
        have verdicts already, and `plain` other pairs wait for theirs."""
        if not self.found:
            return []
        notebook, found = self.look.notebook, self.found
        far = Found(prompts=self.answered, apart=apart(found), pairs=len(found), judged=judged)
        took = (notebook.seconds_each(STEP) or 0) * ANSWERS_EACH * self.answered
        what = f"more prompts after {self.turns}, {judged} pairs judged"
        return self.ask(notebook.decide(what, lambda: more_prompts(pace, plain, far, took)))

    def _sampled(self, asked: Sequence[Prompt]) -> list[Pair]:
        if not asked:
            return []
        score = _by_constraints if self.oracle is None else _by_oracle(self.oracle)
        # Short answers, so that many are finished in the time: only finished ones can be checked.
        system = BRIEF if self.oracle is None else None
        tokens = checked_tokens(self.look.config.responses.max_tokens)
        with self.look.notebook.timed(STEP):
            answers = self.look.answers(Asked(prompts=asked, each=ANSWERS_EACH, tokens=tokens, system=system))
        by_prompt: dict[str, list[Response]] = {}
        for answer in answers:
            by_prompt.setdefault(answer.prompt_id, []).append(answer)
        return last_again(
            replace(pair, source=self._source(prompt))
            for prompt in asked
            for pair in pairs_that_differ(prompt, by_prompt.get(prompt.id, ()), score)
        )

    def _source(self, prompt: Prompt) -> str:
        """The usable prompt that was asked with constraints."""
        return self.prompts[rows.index_of(prompt.row) % len(self.prompts)].id

    @property
    def is_made_up(self) -> bool:
        """Whether made-up pairs stand in: fewer than LEAST that share no answer were found."""
        return self.oracle is None and apart(self.found) < LEAST

    def pairs(self) -> list[Pair]:
        """GOLD pairs at most, unless more of them share no answer; or MADE_UP ones."""
        if self.is_made_up:
            return made_up(self.prompts, MADE_UP, self.look.config.seed)
        return self.found[: max(GOLD, apart(self.found))]

    def about(self, pairs: Sequence[Pair]) -> GoldPairs:
        """What these pairs are, among which others may stand."""
        source: GoldSource = "oracle" if self.oracle is not None else "constraints"
        known = [pair for pair in pairs if pair.better is not None]
        return GoldPairs(
            source="made up" if self.is_made_up else source,
            pairs=len(known),
            again=len(known) - apart(known),
            prompts=self.answered,
            differing=len({pair.prompt.id for pair in self.found}),
        )


def apart(pairs: Iterable[Pair]) -> int:
    """How many of the pairs share no answer."""
    return sum(not pair.again for pair in pairs)


def last_again(pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs, those last with an answer that stands in an earlier one."""
    return sorted(pairs, key=lambda pair: pair.again)


def kinds_that_differ(pairs: Sequence[Pair]) -> list[str]:
    """Kinds of which the better answers keep more constraints than the worse ones; all kinds where these are
    fewer than LEAST_KINDS. What all answers keep, or none, makes no pair."""
    found = {
        constraint.kind
        for pair in pairs
        for constraint in pair.prompt.checks
        if len({checks.passes(answer.text, constraint) for answer in pair.answers}) == 2
    }
    return sorted(found) if len(found) >= LEAST_KINDS else list(checks.TRAINED)


def first_prompts(look: Look, budget: Budget) -> int:
    """How many prompts are answered first, by the speed so far."""
    tokens = min(look.notebook.tokens_each("answers") or EXPECTED_TOKENS, EXPECTED_TOKENS)
    together = look.notebook.steps["answers"]["items"] if "answers" in look.notebook.steps else 1
    return checked_prompts(budget, look.notebook.tokens_per_second() or 1.0, tokens, together)


def checkable(prompts: Sequence[Prompt], numbers: range, seed: int, kinds: Sequence[str]) -> list[Prompt]:
    """Prompts with constraints of these kinds: the usable ones in turn, each time with others."""
    found = []
    for number, numbered in zip(numbers, _numbered(prompts, numbers), strict=False):
        prompt = prompts[number % len(prompts)]
        draw = random.Random(f"preview {seed} {number} {prompt.id}")
        constraints = checks.draw(draw, prompt.text, kinds, least=CONSTRAINTS)
        if not constraints:
            continue
        text = checks.with_constraints(draw, prompt.text, constraints)
        found.append(replace(numbered, text=text, checks=constraints))
    return found


def _numbered(prompts: Sequence[Prompt], numbers: range) -> list[Prompt]:
    """The prompts in turn. Each has an id of its own number, so that one that comes again gets
    other answers."""
    found = []
    for number in numbers if prompts else ():
        prompt = prompts[number % len(prompts)]
        row = rows.persona_row(number, held_out=False)
        found.append(replace(prompt, id=make_id("preview", number, prompt.id), row=row))
    return found


def made_up(prompts: Sequence[Prompt], n: int, seed: int) -> list[Pair]:
    """`n` pairs of a text that keeps a constraint and one that does not, all kinds in turn."""
    asked = [prompt.text for prompt in prompts] or list(QUESTIONS)
    kinds = [checks.KINDS[name] for name in checks.TRAINED]
    found = []
    for number in range(n):
        kind, question = kinds[number % len(kinds)], asked[number % len(asked)]
        draw = random.Random(f"made up {seed} {number}")
        values = kind.draw(draw, question)
        words = draw.choice(kind.wordings).format(**kind.says(values))
        id_ = make_id("made up", seed, number)
        prompt = Prompt(id=id_, row=2 * number, persona_id="", text=f"{question} {words}")
        keeps, breaks = kind.passing(draw, values), kind.failing(draw, values)
        answers = (_answer(prompt, 0, keeps), _answer(prompt, 1, breaks))
        if keeps != breaks:
            found.append(Pair(prompt=prompt, answers=answers, better=answers[0].id, source=question))
    return found


def _answer(prompt: Prompt, index: int, text: str) -> Response:
    return Response(
        id=make_id(prompt.id, index),
        row=prompt.row + index,
        prompt_id=prompt.id,
        index=index,
        text=text,
        token_ids=None,
        finish_reason="stop",
    )


def pairs_that_differ(prompt: Prompt, answers: Iterable[Response], score: Score) -> list[Pair]:
    """All pairs of answers that differ in their score: first the best beside the worst, the second best
    beside the second worst, and so on, of which no answer stands in two; then the others (`Pair.again`)."""
    scored = [(value, answer) for answer in answers if (value := score(prompt, answer.text)) is not None]
    ordered = sorted(scored, key=lambda each: (-each[0], each[1].index))
    n, found = len(ordered), []
    for (a, (high, best)), (b, (low, worst)) in combinations(enumerate(ordered), 2):
        if high > low:
            sides = sorted((best, worst), key=lambda answer: answer.id)  # the better one stands anywhere
            again = a + b != n - 1
            pair = Pair(prompt=prompt, answers=(sides[0], sides[1]), better=best.id, again=again)
            found.append(pair)
    return last_again(found)


def _by_constraints(prompt: Prompt, answer: str) -> float | None:
    return checks.score(answer, prompt.checks)


def _by_oracle(oracle: Callable[[str, str], float | None]) -> Score:
    return lambda prompt, answer: oracle(prompt.text, answer)
