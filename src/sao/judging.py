"""Judging: which of two answers is better. Pairs of responses in, `Judgment` records out (Algorithm 1 of arXiv 2510.06652:
(y_w, y_l) ← M(ranking instruction with x, y_1, y_2)).

`logprob` (default) reads the probabilities of the verdict's first token in one forward pass and, in both orders, lets a
judge's taste for a slot show itself (RLAIF, arXiv 2309.00267). `text` samples a ranking line and reads it strictly (the paper's
way). A verdict that cannot be read is kept as such: it is neither a tie nor a label.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations

from sao.config import JudgingConfig
from sao.engines import ChoiceRequest, Engine, Failure, Message, Request, Sample, Sampling
from sao.templates import fill, load_template
from sao.types import Drop, Judgment, Response, Verdict, make_id, seed_of

Oracle = Callable[[str, str], float | None]
"""(prompt, answer) → score from 0 to 1, None where the prompt is none that it knows."""


@dataclass(frozen=True, slots=True)
class Duel:
    """Two answers in the order in which the judge sees them."""

    id: str
    row: int
    prompt_id: str
    prompt: str
    first: Response
    second: Response


def duels(groups: Iterable[tuple[str, str, list[Response]]], orders: int, key: str, n: int) -> Iterator[Duel]:
    """Every pair of different answers of each (prompt id, prompt text, answers), in one order or both.

    Those that begin alike, with the same first answer to the same prompt, follow each other: an engine that keeps what it has
    read (vLLM's prefix cache) then reads it once.
    """
    per_prompt = n * (n - 1) // 2 * orders
    for prompt_id, prompt, responses in groups:
        found: list[Duel] = []
        for a, b in combinations(responses, 2):
            if a.text == b.text:
                continue  # identical answers never pair; the pairs stage counts them
            place = sum(n - 1 - i for i in range(a.index)) + b.index - a.index - 1
            base = a.row // n * per_prompt + place * orders
            # In one order only, which answer stands first is drawn by the pair's own id, so that a slot's bias averages out.
            swap = orders == 1 and int(make_id(key, a.id, b.id), 16) % 2 == 1
            for order in range(orders):
                x, y = (b, a) if (order == 1) != swap else (a, b)
                found.append(Duel(make_id(key, x.id, y.id), base + order, prompt_id, prompt, x, y))
        yield from sorted(found, key=lambda duel: duel.first.index)


def judge(
    pairs: Iterable[Duel],
    engine: Engine | None,
    config: JudgingConfig,
    done: Container[str],
    oracle: Oracle | None = None,
) -> Iterator[Judgment | Drop]:
    """A judgment, or a Drop where the engine failed, for each duel that is not `done`, in order of finishing.

    `engine` may be None for random and oracle. An engine without log-probabilities gives text verdicts instead.
    """
    todo = (duel for duel in pairs if duel.id not in done)
    match config.method:
        case "random":
            yield from (_judgment(d, "random", _random_verdict(d)) for d in todo)
        case "oracle":
            assert oracle is not None, "the oracle belongs to the proving ground"
            yield from (_judgment(d, "oracle", _oracle_verdict(d, oracle)) for d in todo)
        case "logprob" | "text":
            assert engine is not None
            if config.method == "logprob" and engine.has_logprobs:
                yield from _by_logprob(todo, engine, config)
            else:
                yield from _by_text(todo, engine, config)


def _by_logprob(pairs: Iterable[Duel], engine: Engine, config: JudgingConfig) -> Iterator[Judgment | Drop]:
    template = load_template(config.template, ("prompt", "first", "second"))
    waiting: dict[str, Duel] = {}

    def requests() -> Iterator[ChoiceRequest]:
        for duel in pairs:
            waiting[duel.id] = duel
            yield ChoiceRequest(duel.id, _ask(template, duel), config.choices)

    for choices in engine.choice_logprobs(requests()):
        duel = waiting.pop(choices.id)
        if isinstance(choices, Failure):
            yield _failed(duel, choices)
            continue
        verdict, p_first, mass = read_logprobs(choices.logprobs[0], choices.logprobs[1], config.min_mass)
        yield _judgment(duel, engine.name, verdict, p_first, mass)


def read_logprobs(first: float, second: float, min_mass: float) -> tuple[Verdict | None, float | None, float | None]:
    """Verdict, P(first | a verdict token) and their mass, from two log-probabilities in nats.

    A mass below `min_mass`, or a value that is no number, is unreadable.
    """
    if math.isnan(first) or math.isnan(second) or max(first, second) == -math.inf:
        return None, None, None
    mass = math.exp(first) + math.exp(second)
    gap = second - first
    p_first = 1 / (1 + math.exp(gap)) if gap < 700 else 0.0
    if mass < min_mass:
        return None, p_first, mass
    return "tie" if first == second else "first" if first > second else "second", p_first, mass


def _by_text(pairs: Iterable[Duel], engine: Engine, config: JudgingConfig) -> Iterator[Judgment | Drop]:
    template = load_template(config.template, ("prompt", "first", "second"))
    first, second = config.choices
    # In place of log-probabilities, which name one of the two too, the judge is held to the two rankings where that can be.
    one_of = (f"{first} > {second}", f"{second} > {first}") if config.method == "logprob" else ()
    sampling = Sampling(config.max_tokens, config.temperature, one_of=one_of)
    waiting: dict[str, Duel] = {}

    def requests() -> Iterator[Request]:
        for duel in pairs:
            waiting[duel.id] = duel
            yield Request(_ask(template, duel), (Sample(duel.id, seed_of(duel.id)),), sampling)

    for completion in engine.generate(requests()):
        duel = waiting.pop(completion.id)
        if isinstance(completion, Failure):
            yield _failed(duel, completion)
            continue
        verdict = None if completion.finish_reason == "length" else read_ranking(completion.text, config.choices)
        yield _judgment(duel, engine.name, verdict, text=completion.text)


def _failed(duel: Duel, failure: Failure) -> Drop:
    return Drop(row=duel.row, stage="judgments", record_id=duel.id, reason=failure.reason)


def read_ranking(text: str, choices: tuple[str, str]) -> Verdict | None:
    """The verdict of a ranking line "X > Y", X and Y being the two choices; anything else at all is unreadable."""
    first, second = (re.escape(choice) for choice in choices)
    if re.fullmatch(rf"\s*{first}\s*>\s*{second}\s*", text):
        return "first"
    if re.fullmatch(rf"\s*{second}\s*>\s*{first}\s*", text):
        return "second"
    return None


def _ask(template: str, duel: Duel) -> tuple[Message, ...]:
    text = fill(template, prompt=duel.prompt, first=duel.first.text, second=duel.second.text)
    return (Message("user", text),)


def _judgment(
    duel: Duel, name: str, verdict: Verdict | None, p_first: float | None = None, mass: float | None = None,
    text: str | None = None,
) -> Judgment:  # fmt: skip
    return Judgment(
        id=duel.id,
        row=duel.row,
        prompt_id=duel.prompt_id,
        first_id=duel.first.id,
        second_id=duel.second.id,
        judge=name,
        verdict=verdict,
        p_first=p_first,
        mass=mass,
        text=text,
    )


def _random_verdict(duel: Duel) -> Verdict:
    """A fair coin for the two answers, the same in both orders."""
    low, high = sorted((duel.first.id, duel.second.id))
    winner = random.Random(f"{low}:{high}").choice((low, high))
    return "first" if winner == duel.first.id else "second"


def _oracle_verdict(duel: Duel, oracle: Oracle) -> Verdict | None:
    first, second = oracle(duel.prompt, duel.first.text), oracle(duel.prompt, duel.second.text)
    if first is None or second is None:
        return None
    return "tie" if first == second else "first" if first > second else "second"
