"""What the judge is worth: all ways to judge see some pairs, the recipe's and the best other see all of them.

Most pairs are of answers of which a program knows the better one. How many are made and judged follows from
the time that is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sao import checks
from sao.config.judging import READERS
from sao.errors import SAOError
from sao.pipeline.reader import Reader
from sao.preview import budget as times
from sao.preview.budget import Budget, Pace
from sao.preview.figures import judge_figures
from sao.preview.gold import STEP, Gold, first_prompts, kinds_that_differ
from sao.preview.look import Look, Pair, Shown
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
    first = decide("prompts with constraints", lambda: first_prompts(look, budget))
    asked = gold.asked(range(first), checks.TRAINED)
    known = gold.sampled(asked)
    tried = [*known, *plain][:TRIED]
    each = decide("microseconds of a verdict", lambda: round(1e6 * _seconds_each(look, tried, ways))) / 1e6
    pace = Pace(budget, len(ways), each)
    if known:
        cost, share = look.notebook.seconds(STEP) / len(known), len(known) / len(asked)
        more = decide("more prompts", lambda: times.more_prompts(pace, len(plain), len(known), cost, share))
        further = gold.asked(range(first, first + more), kinds_that_differ(known))
        known, asked = [*known, *gold.sampled(further)], [*asked, *further]
    known, about = gold.result(known, len(asked))
    shown = shown.model_copy(update={"gold": about})
    pairs = _mixed(plain, known)
    return _judged(look, pace, shown, pairs, ways) if pairs else shown


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


def _judged(look: Look, pace: Pace, shown: Preview, pairs: Sequence[Pair], ways: Sequence[Way]) -> Preview:
    """The preview with all ways tried on some pairs, and the recipe's and the best other on as many as the
    time allows."""
    decide = look.notebook.decide
    first = decide("pairs, all ways", lambda: times.judged_by_all(pace, len(pairs)))
    found = [_judge_way(look, way, (pairs[:first],), len(ways)) for way in ways]
    names = [way.name for way in finalists(found, look.config)]
    last = decide("pairs", lambda: times.judged_by_best(_paced(look, pace, names), len(pairs), first))
    notes = list(shown.notes)
    if last > first:
        parts = (pairs[:first], pairs[first:last])
        again = {way[0]: _judge_way(look, way, parts, len(ways)) for way in ways if way[0] in names}
        failed = {name: way.skipped for name, way in again.items() if way.skipped is not None}
        notes += [f"{name} has figures of the first {first} pairs: {why}" for name, why in failed.items()]
        found = [way if way.name in failed else again.get(way.name, way) for way in found]
    is_unread = any(way.unparseable and way.accuracy is not None for way in found)
    notes += [HALF] if is_unread else []
    return shown.model_copy(update={"judging": found, "notes": notes})


def _paced(look: Look, pace: Pace, names: Sequence[str]) -> Pace:
    """The pace by what the verdicts of these ways took."""
    took = [each for name in names if (each := look.notebook.seconds_each(f"verdicts, {name}")) is not None]
    return replace(pace, each=mean(took)) if took else pace


def _judge_way(look: Look, way: Way, parts: Sequence[Sequence[Pair]], ways: int) -> JudgeWay:
    """One way to judge, tried on the pairs part by part."""
    name, own, is_recipe = way
    tried = JudgeWay(name=name, settings=dict(own), is_recipe=is_recipe)
    verdicts: list[Judgment] = []
    try:
        for pairs in parts:
            shown = Shown(round=look.round(own), pairs=pairs)
            if (method := shown.judge.config.method) not in READERS:
                skipped = f"judging.method {method} asks no model; the other ways ask the model itself"
                return tried.model_copy(update={"skipped": skipped})
            check_words(shown.judge.config)
            with look.notebook.timed(f"verdicts, {name}"):
                verdicts += look.verdicts(shown, f"verdicts, {name}")
    except SAOError as error:
        return tried.model_copy(update={"skipped": str(error)})
    return judge_figures(tried, [pair for part in parts for pair in part], verdicts, ways)
