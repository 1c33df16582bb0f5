"""How a chat model is asked for verdicts: by the probabilities of two words, for two answers (`by_logprob`)
or for one alone (`by_pointwise`), or by text that it writes (`by_text`). `OrderedPair`s in, `Judgment`s or
Drops out, as the engine finishes them.

A verdict may need several requests (wordings, answers without content, one for each answer). What several
pairs of a prompt need is asked once. In memory are the pairs that wait in the engine and the last prompt.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from sao.config import JudgingConfig
from sao.engines import ChoiceRequest, Choices, Completion, Engine, Failure, Request, Sample, Sampling
from sao.errors import ConfigError
from sao.records import Drop, Judgment, Message, Response, make_id, seed_of
from sao.stages.answer_pairs import OrderedPair
from sao.stages.verdicts import judgment_of, log_odds_of, majority, mean_verdict, read_ranking
from sao.stages.wordings import judge_templates
from sao.templates import fill

CONTENT_FREE = ("N/A", "", "…")
"""Answers without content, each shown in both places. (The paper's are "N/A", "" and "[MASK]".)"""


def needs_logprobs(config: JudgingConfig) -> str | None:
    """The key of a way of judging that needs log-probabilities; None where text would do."""
    ways = {
        "judging.method": config.method == "pointwise",
        "judging.wordings": bool(config.wordings),
        "judging.content_free": config.content_free,
    }
    return next((key for key, is_asked in ways.items() if is_asked), None)


def require_logprobs(engine: Engine, config: JudgingConfig) -> None:
    """Raise ConfigError where a way of judging needs log-probabilities and the engine gives none."""
    key = needs_logprobs(config)
    if key is not None and not engine.has_logprobs:
        way = f"{key} pointwise" if config.method == "pointwise" else key
        raise ConfigError(
            f"{way} needs log-probabilities, and the judge's engine ({engine.name}) gives none. Take another "
            "engine (judging.engine), or judge by text (judging.method text, judging.samples)",
            key=key,
        )


def by_logprob(
    pairs: Iterable[OrderedPair], engine: Engine, config: JudgingConfig, name: str
) -> Iterator[Judgment | Drop]:
    """Verdicts by the log-probabilities of the two words, each wording's log-odds for answers without content
    subtracted where the recipe says so (contextual calibration, Zhao et al., arXiv 2102.09690: they divide by
    the mean probability, here the mean log-odds are subtracted)."""
    templates = judge_templates(config)

    def requests(pair: OrderedPair) -> list[ChoiceRequest]:
        shown = (pair.first.text, pair.second.text)
        asked = [
            _choice(_id(pair.id, number), template, config, pair.prompt, shown)
            for number, template in enumerate(templates)
        ]
        for number, template in enumerate(templates if config.content_free else ()):
            asked += [
                _choice(make_id("content-free", pair.prompt_id, number, text), template, config, pair.prompt,
                        (text, text))
                for text in CONTENT_FREE
            ]  # fmt: skip
        return asked

    for pair, answers in gathered(pairs, requests, engine):
        if isinstance(answers, Failure):
            yield failed(pair, answers)
            continue
        parts = [log_odds_of(answer.logprobs) for answer in answers[: len(templates)]]
        if config.content_free:
            leans = [log_odds_of(answer.logprobs)[0] for answer in answers[len(templates) :]]
            parts = [
                (odds - _mean(leans[k * len(CONTENT_FREE) : (k + 1) * len(CONTENT_FREE)]), prob)
                for k, (odds, prob) in enumerate(parts)
            ]
        yield judgment_of(pair, name, *mean_verdict(parts, config.min_verdict_prob))


def _mean(values: Sequence[float]) -> float:
    """The mean of what is a number, NaN where nothing is."""
    known = [value for value in values if math.isfinite(value)]
    return fmean(known) if known else math.nan


def by_pointwise(
    pairs: Iterable[OrderedPair], engine: Engine, config: JudgingConfig, name: str
) -> Iterator[Judgment | Drop]:
    """Each answer alone has a score, the log-odds of Yes against No; P(first) = σ(score of first − score of
    second). Each is asked about once, in however many pairs and orders it stands."""
    templates = judge_templates(config)

    def requests(pair: OrderedPair) -> list[ChoiceRequest]:
        return [
            _choice(_id(answer.id, number), template, config, pair.prompt, answer)
            for answer in (pair.first, pair.second)
            for number, template in enumerate(templates)
        ]

    for pair, answers in gathered(pairs, requests, engine):
        if isinstance(answers, Failure):
            yield failed(pair, answers)
            continue
        scores = [log_odds_of(answer.logprobs) for answer in answers]
        both = zip(scores[: len(templates)], scores[len(templates) :], strict=True)
        parts = [(first - second, min(prob, other)) for (first, prob), (second, other) in both]
        yield judgment_of(pair, name, *mean_verdict(parts, config.min_verdict_prob))


def _id(record_id: str, number: int) -> str:
    """The id of a record's request by number."""
    return record_id if number == 0 else make_id(record_id, number)


def _choice(
    id_: str, template: str, config: JudgingConfig, prompt: str, shown: tuple[str, str] | Response
) -> ChoiceRequest:
    if isinstance(shown, Response):
        text = fill(template, prompt=prompt, answer=shown.text)
    else:
        text = fill(template, prompt=prompt, first=shown[0], second=shown[1])
    return ChoiceRequest(id_, (Message("user", text),), config.words, config.prefill)


# Several requests for one pair.


@dataclass(slots=True, eq=False)
class _Asked:
    """A request that is asked once: its answer, and the pairs that wait for it."""

    answer: Choices | Failure | None = None
    waiting: list[_Needs] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Needs:
    """A pair with its requests, and how many of them are not answered yet."""

    pair: OrderedPair
    asked: list[_Asked] = field(default_factory=list)
    open: int = 0

    def answers(self) -> list[Choices] | Failure:
        """The answers in the order of the requests, or the first failure."""
        found: list[Choices] = []
        for asked in self.asked:
            if isinstance(asked.answer, Failure):
                return asked.answer
            assert asked.answer is not None
            found.append(asked.answer)
        return found


def gathered(
    pairs: Iterable[OrderedPair],
    requests_of: Callable[[OrderedPair], Sequence[ChoiceRequest]],
    engine: Engine,
) -> Iterator[tuple[OrderedPair, list[Choices] | Failure]]:
    """Each pair with the answers to all its requests, in order of finishing. A request (by its id) that
    several pairs need is asked once, where these pairs follow each other or it is still in the engine."""
    in_engine: dict[str, _Asked] = {}
    ready: deque[_Needs] = deque()

    def requests() -> Iterator[ChoiceRequest]:
        of_prompt: dict[str, _Asked] = {}
        prompt_id = None
        for pair in pairs:
            if pair.prompt_id != prompt_id:
                prompt_id, of_prompt = pair.prompt_id, {}
            needs, new = _needs_of(pair, requests_of(pair), of_prompt, in_engine)
            if not needs.open:
                ready.append(needs)
            yield from new

    for answer in engine.choice_logprobs(requests()):
        asked = in_engine.pop(answer.id)
        asked.answer = answer
        for needs in asked.waiting:
            needs.open -= 1
            if not needs.open:
                ready.append(needs)
        asked.waiting.clear()
        while ready:
            done = ready.popleft()
            yield done.pair, done.answers()
    yield from ((done.pair, done.answers()) for done in ready)


def _needs_of(
    pair: OrderedPair,
    requests: Iterable[ChoiceRequest],
    of_prompt: dict[str, _Asked],
    in_engine: dict[str, _Asked],
) -> tuple[_Needs, list[ChoiceRequest]]:
    """What a pair needs, and those of its requests that are new; both dicts get these."""
    needs, new = _Needs(pair), []
    for request in requests:
        asked = of_prompt.get(request.id) or in_engine.get(request.id)
        if asked is None:
            asked = in_engine[request.id] = _Asked()
            new.append(request)
        of_prompt[request.id] = asked
        needs.asked.append(asked)
        if asked.answer is None:
            asked.waiting.append(needs)
            needs.open += 1
    return needs, new


# Text.


@dataclass(slots=True, eq=False)
class _Said:
    """The samples of one pair, by number."""

    pair: OrderedPair
    samples: dict[int, Completion | Failure] = field(default_factory=dict)


def by_text(
    pairs: Iterable[OrderedPair], engine: Engine, config: JudgingConfig, name: str
) -> Iterator[Judgment | Drop]:
    """Verdicts by ranking lines: one, or the majority of several samples."""
    (template,) = judge_templates(config)
    first, second = config.choices
    # In place of log-probabilities, which always name one of the two, the engine restricts the text to the
    # two rankings where it can.
    one_of = (f"{first} > {second}", f"{second} > {first}") if config.method == "logprob" else ()
    sampling = Sampling(config.max_tokens, config.temperature, one_of=one_of)
    waiting: dict[str, tuple[int, _Said]] = {}

    def requests() -> Iterator[Request]:
        for pair in pairs:
            said = _Said(pair)
            ids = [_id(pair.id, number) for number in range(config.samples)]
            waiting.update((id_, (number, said)) for number, id_ in enumerate(ids))
            text = fill(template, prompt=pair.prompt, first=pair.first.text, second=pair.second.text)
            samples = tuple(Sample(id_, seed_of(id_)) for id_ in ids)
            yield Request((Message("user", text),), samples, sampling, config.prefill)

    for completion in engine.generate(requests()):
        number, said = waiting.pop(completion.id)
        said.samples[number] = completion
        if len(said.samples) == config.samples:
            yield _read_samples(said, config, name)


def _read_samples(said: _Said, config: JudgingConfig, name: str) -> Judgment | Drop:
    """The verdict of a pair's samples, with what was written."""
    verdicts, texts = [], []
    for _, completion in sorted(said.samples.items()):
        if isinstance(completion, Failure):
            return failed(said.pair, completion)
        cut = completion.finish_reason == "length"
        verdicts.append(None if cut else read_ranking(completion.text, config.choices, config.reasoning))
        texts.append(completion.text)
    if len(verdicts) == 1:
        return judgment_of(said.pair, name, verdicts[0], text=texts[0])
    return judgment_of(said.pair, name, *majority(verdicts), text=SAMPLES_APART.join(texts))


SAMPLES_APART = "\n---\n"
"""What stands between the samples in a judgment's text."""


def failed(pair: OrderedPair, failure: Failure) -> Drop:
    """The Drop of a pair of which the engine could not say anything."""
    return Drop(row=pair.row, stage="judgments", record_id=pair.id, reason=failure.reason)
