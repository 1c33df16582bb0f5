"""Pairs of answers of which a program knows the better one: the model's own answers to prompts with
constraints, or, where these hardly differ, texts by the constraints' own generators; in the toy world its
oracle."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from sao import checks
from sao.preview.budget import ANSWERS_EACH, EXPECTED_TOKENS, Budget, checked_prompts, checked_tokens
from sao.preview.look import Asked, Look, Pair
from sao.preview.ways import BRIEF
from sao.records import Prompt, Response, make_id
from sao.results.preview import GoldPairs, GoldSource
from sao.stages import rows

LEAST = 5
"""Sampled pairs below which made-up ones stand in."""
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


def gold_pairs(
    look: Look, prompts: Sequence[Prompt], oracle: Callable[[str, str], float | None] | None, n: int
) -> tuple[list[Pair], GoldPairs]:
    """At most `n` prompts answered, and the pairs that come of it."""
    if oracle is not None:
        asked, score = _with_rows(prompts[:n]), _by_oracle(oracle)
    else:
        asked, score = checkable(prompts, n, look.config.seed), _by_constraints
    # Short answers, so that many are finished in the time: only finished ones can be checked.
    system = BRIEF if oracle is None else None
    sources = {prompt.id: prompts[number % len(prompts)].id for number, prompt in enumerate(asked)}
    sampled = _sampled(look, asked, score, system) if asked else ()
    pairs = [replace(pair, source=sources[pair.prompt.id]) for pair in sampled]
    source: GoldSource = "oracle" if oracle is not None else "constraints"
    found = GoldPairs(source=source, pairs=len(pairs), prompts=len(asked), differing=len(pairs))
    if oracle is not None or len(pairs) >= LEAST:
        return pairs, found
    pairs = made_up(prompts, MADE_UP, look.config.seed)
    return pairs, found.model_copy(update={"source": "made up", "pairs": len(pairs)})


def prompts_wanted(look: Look, budget: Budget) -> int:
    """How many prompts are answered for gold pairs, by the speed so far."""
    tokens = min(look.notebook.tokens_each("answers") or EXPECTED_TOKENS, EXPECTED_TOKENS)
    return checked_prompts(budget, look.notebook.tokens_per_second() or 1.0, tokens)


def checkable(prompts: Sequence[Prompt], n: int, seed: int) -> list[Prompt]:
    """`n` prompts with constraints: the usable ones in turn, each time with others."""
    found = []
    for number in range(n if prompts else 0):
        prompt = prompts[number % len(prompts)]
        draw = random.Random(f"preview {seed} {number} {prompt.id}")
        constraints = checks.draw(draw, prompt.text, checks.TRAINED)
        text = checks.with_constraints(draw, prompt.text, constraints)
        id_ = make_id("preview", number, prompt.id)
        row = rows.persona_row(number, held_out=False)
        found.append(replace(prompt, id=id_, row=row, text=text, checks=constraints))
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


def _sampled(look: Look, asked: Sequence[Prompt], score: Score, system: str | None) -> Iterator[Pair]:
    """Of each prompt whose answers differ in their score: one of the best and one of the worst."""
    tokens = checked_tokens(look.config.responses.max_tokens)
    with look.notebook.timed("checked answers"):
        answers = look.answers(Asked(prompts=asked, each=ANSWERS_EACH, tokens=tokens, system=system))
    by_prompt: dict[str, list[Response]] = {}
    for answer in answers:
        by_prompt.setdefault(answer.prompt_id, []).append(answer)
    for prompt in asked:
        pair = best_and_worst(prompt, by_prompt.get(prompt.id, ()), score)
        if pair is not None:
            yield pair


def best_and_worst(prompt: Prompt, answers: Iterable[Response], score: Score) -> Pair | None:
    """A pair of one of the best and one of the worst answers, None where all are worth the same."""
    scored = [(value, answer) for answer in answers if (value := score(prompt, answer.text)) is not None]
    if not scored:
        return None
    values = [value for value, _ in scored]
    if min(values) == max(values):
        return None
    best = next(answer for value, answer in scored if value == max(values))
    worst = next(answer for value, answer in scored if value == min(values))
    first, second = sorted((best, worst), key=lambda answer: answer.id)  # the better one stands anywhere
    return Pair(prompt=prompt, answers=(first, second), better=best.id)


def _with_rows(prompts: Sequence[Prompt]) -> list[Prompt]:
    return [replace(p, row=rows.persona_row(number, held_out=False)) for number, p in enumerate(prompts)]


def _by_constraints(prompt: Prompt, answer: str) -> float | None:
    return checks.score(answer, prompt.checks)


def _by_oracle(oracle: Callable[[str, str], float | None]) -> Score:
    return lambda prompt, answer: oracle(prompt.text, answer)
