"""What the judge is worth: all ways to judge see some pairs, the recipe's and the best other see more of
them, and the rest as many as these where time is left.

Most pairs are of answers of which a program knows the better one. How many are made and judged follows from
the time that is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from sao.config.judging import READERS
from sao.errors import SAOError
from sao.execution.session import served_by_one
from sao.pipeline.reader import Reader
from sao.preview import budget as times
from sao.preview.budget import Budget, Pace
from sao.preview.figures import judge_figures
from sao.preview.gold import Gold, first_prompts
from sao.preview.look import SIDE_BY_SIDE, Look, Pair, Shown
from sao.preview.rules import chosen_way, finalists
from sao.preview.ways import Way, judge_ways
from sao.records import Judgment, Prompt, Response
from sao.results.preview import JudgeWay, Preview
from sao.stages.wordings import check_words
from sao.statistics import mean

HALF = "A pair with a verdict that cannot be read counts as half right."
TRIED = 2
"""Pairs whose verdicts show how fast the judge is."""
PLAIN = 6
"""Pairs of answers to the recipe's own prompts that are judged with the others."""


def with_verdicts(look: Look, budget: Budget, shown: Preview) -> Preview:
    """The preview with what the judge is worth."""
    prompts, plain = _texts(look, shown)
    ways, decide = judge_ways(look.config), look.notebook.decide
    gold = Gold(look=look, prompts=prompts, oracle=Reader(look.round({})).oracle)
    gold.ask(decide("prompts with constraints", lambda: first_prompts(look, budget)))
    tried = [*gold.found, *plain][:TRIED]
    each = decide("microseconds of a verdict", lambda: round(1e6 * _seconds_each(look, tried, ways))) / 1e6
    pace = Pace(budget, len(ways), each)
    gold.ask_more(pace, len(plain))
    return _judged(Judging(look=look, pace=pace, gold=gold, pairs=_mixed(plain, gold.pairs())), shown, ways)


def _texts(look: Look, shown: Preview) -> tuple[Sequence[Prompt], list[Pair]]:
    """The usable prompts, and the first PLAIN of those with two different answers as pairs."""
    chosen = chosen_way(shown)
    if chosen is None or shown.answers is None:
        return (), []
    asked = look.notebook.asked
    settings = {
        "personas.n": str(asked["personas"]),
        "prompts.max_tokens": str(asked["tokens of a prompt"]),
        "responses.max_tokens": str(shown.answers.max_tokens),
        **chosen.settings,
    }
    run = Reader(look.round(settings))
    pairs = [
        Pair(prompt=prompt, answers=(answers[0], answers[1]))
        for prompt, answers in run.answered()
        if _differ(answers)
    ]
    return list(run.asked(held_out=False)), pairs[:PLAIN]


def _differ(answers: Sequence[Response]) -> bool:
    return len(answers) == 2 and answers[0].text != answers[1].text


def _mixed(plain: Sequence[Pair], gold: Sequence[Pair]) -> list[Pair]:
    """Pairs of both kinds, one plain one after three of which the better answer is known."""
    found: list[Pair] = []
    waiting = list(plain)
    for number, pair in enumerate(gold, 1):
        found.append(pair)
        if number % 3 == 0 and waiting:
            found.append(waiting.pop(0))
    return [*found, *waiting]


def _seconds_each(look: Look, pairs: Sequence[Pair], ways: Sequence[Way]) -> float:
    """Seconds of a verdict by the first way that reads one, 0 where none does; its verdicts are not kept."""
    for _, settings, _ in ways if pairs else ():
        try:
            shown = Shown(round=look.round(settings), pairs=pairs)
            if shown.judge.config.method in READERS:
                return times.seconds_each(look.verdicts_now(shown))
        except SAOError:
            continue  # this way cannot be used: it is tried, and its error shown, below
    return 0.0


@dataclass(kw_only=True)
class Judging:
    """The judge at work: the pairs so far; and by way its verdicts, on how many of the pairs they are, and
    why there are no more where something failed."""

    look: Look
    pace: Pace
    gold: Gold
    pairs: list[Pair]
    said: dict[str, list[Judgment]] = field(default_factory=dict)
    upto: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def _judged(judging: Judging, shown: Preview, ways: Sequence[Way]) -> Preview:
    """The preview with all ways tried on some pairs, and the recipe's and the best other, then the rest, on
    as many as the time allows."""
    look, pairs = judging.look, judging.pairs
    first = look.notebook.decide("pairs, all ways", lambda: times.judged_by_all(judging.pace, len(pairs)))
    found = [_judge_way(judging, way, first) for way in ways if pairs]
    names = [way.name for way in finalists(found, look.config)]
    _judge_more(judging, [way for way in ways if way[0] in names])
    for way in ways:
        if way[0] in judging.said and way[0] not in names:
            _catch_up(judging, way)
    found = [
        judge_figures(way, judging.pairs[: judging.upto[way.name]], judging.said[way.name], len(ways))
        if way.skipped is None
        else way
        for way in found
    ]
    notes = [*shown.notes, *_failures(judging)]
    is_unread = any(way.unparseable and way.accuracy is not None for way in found)
    notes += [HALF] if is_unread else []
    about = judging.gold.about(judging.pairs[: max(judging.upto.values(), default=0)])
    return shown.model_copy(update={"gold": about, "judging": found, "notes": notes})


def _failures(judging: Judging) -> list[str]:
    return [
        f"By {name} only the first {judging.upto[name]} pairs were judged: {why}"
        for name, why in judging.failed.items()
    ]


def _judge_more(judging: Judging, ways: Sequence[Way]) -> None:
    """Judge more pairs in these ways, side by side, by and by as the time allows, and make more where there
    are fewer than GOLD."""
    while ways and ways[0][0] not in judging.failed:
        last = judging.upto[ways[0][0]]
        pace = replace(_paced(judging, ways), ways=len(ways))
        if last == len(judging.pairs) and not _has_more(judging, ways):
            break
        allowed = partial(times.judged_by_best, pace, len(judging.pairs), last)
        upto = judging.look.notebook.decide(f"pairs after {last}", allowed)
        if upto - last < min(SIDE_BY_SIDE, len(judging.pairs) - last):
            break
        _judge_on(judging, ways, upto)


def _catch_up(judging: Judging, way: Way) -> None:
    """Judge what others have judged in this way too, where the time that is left allows all of it."""
    first, most = judging.upto[way[0]], max(judging.upto.values())
    pace = replace(_paced(judging, [way]), ways=1)
    allowed = partial(times.judged_by_best, pace, most, first)
    if first < most == judging.look.notebook.decide(f"pairs after {first}, {way[0]}", allowed):
        _judge_on(judging, [way], most)


def _judge_on(judging: Judging, ways: Sequence[Way], upto: int) -> None:
    """Judge the pairs up to this one in these ways, side by side."""
    first = judging.upto[ways[0][0]]
    names = [name for name, _, _ in ways]
    try:
        verdicts = judging.look.verdicts([_shown(judging, way, first, upto) for way in ways])
    except SAOError as error:
        judging.failed |= dict.fromkeys(names, str(error))
        return
    for name, further in zip(names, verdicts, strict=True):
        judging.said[name] += further
        judging.upto[name] = upto


def _has_more(judging: Judging, ways: Sequence[Way]) -> bool:
    """Whether the time allowed more pairs whose better answer is known, where there are fewer than GOLD. It
    would not allow that another judge than the model goes and comes back."""
    known = sum(pair.better is not None for pair in judging.pairs)
    roles = [judging.look.round(settings).roles for _, settings, _ in ways]
    if judging.gold.is_made_up or known >= times.GOLD:
        return False
    if not all(served_by_one(role.policy, role.judges[0].role) for role in roles):
        return False
    try:
        new = judging.gold.ask_more(_paced(judging, ways), 0, known)
    except SAOError as error:
        judging.failed |= dict.fromkeys((name for name, _, _ in ways), str(error))
        return False
    judging.pairs = [*judging.pairs, *new[: times.GOLD - known]]
    return bool(new)


def _paced(judging: Judging, ways: Sequence[Way]) -> Pace:
    """The pace by the seconds of a verdict in these ways so far. (A verdict may take several requests.)"""
    seconds, said = judging.look.notebook.seconds, judging.said
    took = [seconds(f"verdicts, {name}") / len(said[name]) for name, _, _ in ways if said[name]]
    return replace(judging.pace, each=mean(took)) if took else judging.pace


def _shown(judging: Judging, way: Way, first: int, upto: int) -> Shown:
    name, settings, _ = way
    return Shown(round=judging.look.round(settings), pairs=judging.pairs[first:upto], way=name)


def _judge_way(judging: Judging, way: Way, first: int) -> JudgeWay:
    """A way to judge, tried on the first pairs."""
    name, own, is_recipe = way
    tried = JudgeWay(name=name, settings=dict(own), is_recipe=is_recipe)
    try:
        shown = _shown(judging, way, 0, first)
        if (method := shown.judge.config.method) not in READERS:
            skipped = f"judging.method {method} asks no model; the other ways ask the model itself"
            return tried.model_copy(update={"skipped": skipped})
        check_words(shown.judge.config)
        (judging.said[name],) = judging.look.verdicts([shown])
    except SAOError as error:
        return tried.model_copy(update={"skipped": str(error)})
    judging.upto[name] = first
    return judge_figures(tried, shown.pairs, judging.said[name], judging.pace.ways)
