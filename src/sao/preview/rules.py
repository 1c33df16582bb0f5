"""What to change, by rules: each is a small function with a threshold and a sentence. A rule sees the preview
and the recipe and gives a `Change`, or None where all is well."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sao.config import Config
from sao.config.judging import READERS
from sao.preview.budget import FINALISTS
from sao.preview.ways import SHORT, differing
from sao.results.preview import Change, JudgeWay, Preview, PromptWay
from sao.tables import percent

Rule = Callable[[Preview, Config], Change | None]
ENOUGH, MUCH_MORE = 0.5, 0.25
"""Share of usable prompts that will do; how much better another way must be to take the recipe's place."""
DISTINCT, MANY_CUT, SOME = 0.7, 0.3, 0.1
"""Share of distinct texts below which they repeat each other; of texts cut off, and of empty or looping ones,
from which on they are too many."""
MASS, ONE_SLOT = 0.3, 0.9
"""Probability of the verdict words that will do; share of the verdicts for one slot that is too large."""
LONG_RUN, WORTH_ROUNDING = 24 * 3600, 2 * 3600
"""Seconds from which on a run is called long, and from which on bfloat16 is mentioned."""
HOTTER = 0.3
"""What is added to a temperature, up to 1."""


def changes(preview: Preview, config: Config) -> list[Change]:
    """What the rules find, in the order of the steps, with the settings that the recipe does not have yet."""
    found = [change for rule in RULES if (change := rule(preview, config)) is not None]
    return [change.model_copy(update={"settings": differing(config, change.settings)}) for change in found]


# Prompts.


def recipe_way(preview: Preview) -> PromptWay | None:
    """The recipe's own way to get prompts."""
    return next((way for way in preview.prompts if way.is_recipe), None)


def best_way(preview: Preview) -> PromptWay | None:
    """The way with the most usable prompts."""
    return next((way for way in preview.prompts if way.name == preview.best), None)


def chosen_way(preview: Preview) -> PromptWay | None:
    """The way that the recipe has after the change: its own, unless another one is much better."""
    own, best = recipe_way(preview), best_way(preview)
    if own is None or best is None or own.name == best.name:
        return best
    return best if own.share < ENOUGH and best.share >= own.share + MUCH_MORE else own


def prompt_method(preview: Preview, config: Config) -> Change | None:
    """Another way gives many more usable prompts."""
    own, chosen = recipe_way(preview), chosen_way(preview)
    if own is None or chosen is None or own.name == chosen.name:
        return None
    before = f"against {own.usable} of {own.asked}" if own.asked else f"where {own.name} cannot be used"
    key = "prompts.prefill true" if "prefill" in chosen.name else f"prompts.method {chosen.name}"
    says = f"{key}: {chosen.usable} of {chosen.asked} prompts were usable {before} by {own.name}."
    return Change(rule="prompt method", says=says, settings=dict(chosen.settings))


def few_prompts(preview: Preview, config: Config) -> Change | None:
    """The way that is taken gives too few usable prompts."""
    chosen = chosen_way(preview)
    share = 1.0 if not preview.prompts else chosen.share if chosen is not None else 0.0
    if share >= ENOUGH:
        return None
    seen = f"{percent(share, 0)} of the prompts are usable" if share else "No prompt is usable"
    best = best_way(preview)
    if best is not None and chosen is not None and best.share > chosen.share:
        seen += f" (by {best.name} {percent(best.share, 0)})"
    says = (
        f"{seen}: read the texts and the reasons. Take a larger model, prompts of others "
        f"(prompts.source), or another template. A run stops where more than max_drop_share = "
        f"{config.max_drop_share:g} is lost"
    )
    if config.max_drop_share >= 1 - share or share == 0:
        return Change(rule="few prompts", says=f"{says}.")
    allowed = f"{min(1.0, round(1 - share, 1) + 0.1):g}"
    says = f"{says}; the written recipe allows more ({allowed})."
    return Change(rule="few prompts", says=says, settings={"max_drop_share": allowed})


def cut_prompts(preview: Preview, config: Config) -> Change | None:
    """Many prompts run into the token limit."""
    way = chosen_way(preview)
    cut = way.reasons.get("cut off at max_tokens", 0) if way else 0
    if way is None or not way.asked or cut / way.asked <= MANY_CUT:
        return None
    seen = f"{cut} of {way.asked} prompts are longer than {way.max_tokens} tokens"
    advice = "a lower prompts.temperature, or a template that asks for one sentence"
    if way.max_tokens < config.prompts.max_tokens:
        limit = f"where the preview stops (prompts.max_tokens is {config.prompts.max_tokens})"
        return Change(rule="cut prompts", says=f"{seen}, {limit}. What helps: {advice}.")
    longer = str(2 * config.prompts.max_tokens)
    says = f"{seen} and would be lost: prompts.max_tokens {longer}; or {advice}."
    return Change(rule="cut prompts", says=says, settings={"prompts.max_tokens": longer})


def same_prompts(preview: Preview, config: Config) -> Change | None:
    """Prompts repeat each other."""
    way = chosen_way(preview)
    if way is None or way.distinct is None or way.distinct >= DISTINCT:
        return None
    return _hotter(
        "same prompts",
        f"Only {percent(way.distinct, 0)} of the prompts are distinct",
        "prompts.temperature",
        config.prompts.temperature,
    )


# Answers.


def cut_answers(preview: Preview, config: Config) -> Change | None:
    """Many answers run into the token limit."""
    answers = preview.answers
    if answers is None or not answers.asked or answers.cut / answers.asked <= MANY_CUT:
        return None
    seen = f"{answers.cut} of {answers.asked} answers are longer than {answers.max_tokens} tokens"
    if answers.max_tokens < answers.recipe_max_tokens:
        seen += f", where the preview stops (responses.max_tokens is {answers.recipe_max_tokens})"
    if config.responses.system is None:
        says = f"{seen}: the written recipe asks for short answers by a system message (responses.system)."
        return Change(rule="cut answers", says=says, settings={"responses.system": SHORT})
    if answers.max_tokens < answers.recipe_max_tokens:
        return Change(rule="cut answers", says=f"{seen}. Look again with more time (--minutes).")
    longer = str(2 * answers.recipe_max_tokens)
    says = f"{seen} and would be lost: responses.max_tokens {longer}, or a system message that asks for less."
    return Change(rule="cut answers", says=says, settings={"responses.max_tokens": longer})


def empty_answers(preview: Preview, config: Config) -> Change | None:
    """Answers without text."""
    answers = preview.answers
    if answers is None or not answers.asked or answers.empty / answers.asked <= SOME:
        return None
    says = (
        f"{answers.empty} of {answers.asked} answers are empty: look at the model's chat template, and at "
        "responses.temperature."
    )
    return Change(rule="empty answers", says=says)


def looping_answers(preview: Preview, config: Config) -> Change | None:
    """Answers that go in circles."""
    answers = preview.answers
    if answers is None or not answers.asked or answers.looping / answers.asked <= SOME:
        return None
    says = (
        f"{answers.looping} of {answers.asked} answers repeat themselves. A higher responses.temperature may "
        "help; a base model does this, and so does a wrong chat template."
    )
    return Change(rule="looping answers", says=says)


def same_answers(preview: Preview, config: Config) -> Change | None:
    """Answers repeat each other."""
    answers = preview.answers
    if answers is None or answers.distinct is None or answers.distinct >= DISTINCT:
        return None
    seen = f"Only {percent(answers.distinct, 0)} of the answers are distinct, and equal ones make no pair"
    return _hotter("same answers", seen, "responses.temperature", config.responses.temperature)


def _hotter(rule: str, seen: str, key: str, now: float) -> Change:
    if now >= 1:
        return Change(rule=rule, says=f"{seen}, although {key} is {now:g}: a larger model varies more.")
    new = f"{min(1.0, now + HOTTER):g}"
    return Change(rule=rule, says=f"{seen}: {key} {new} instead of {now:g}.", settings={key: new})


# Verdicts.


def is_fair(way: JudgeWay, config: Config) -> bool:
    """Whether neither slot decides alone. One answer at a time has no slots."""
    if way.settings.get("judging.method", config.judging.method) == "pointwise":
        return True
    return way.first_slot is not None and 1 - ONE_SLOT <= way.first_slot <= ONE_SLOT


def has_mass(way: JudgeWay) -> bool:
    """Whether the verdict words are what the judge wants to say."""
    return way.verdicts > 0 and (way.mass is None or way.mass >= MASS)


def own_judge(preview: Preview) -> JudgeWay | None:
    """The recipe's own way to judge, None where it was not tried."""
    return next((way for way in preview.judging if way.is_recipe and way.skipped is None), None)


def passes(way: JudgeWay, config: Config) -> bool:
    """Whether the verdicts can be read and hang on the answers."""
    return has_mass(way) and is_fair(way, config)


def chosen_judge(preview: Preview, config: Config) -> JudgeWay | None:
    """The way to judge that the recipe has after the change: its own, or of those that are better the one
    that is right most often. Only ways that judged as many pairs are compared. None where no model judges:
    labels by checks or a rule need no other way."""
    own = own_judge(preview)
    if own is None or config.judging.method not in READERS:
        return None
    others = [way for way in _others(preview.judging, config) if way.pairs >= own.pairs]
    better = [way for way in others if _is_better(way, own, config)]
    return max(better, key=_merit, default=own)


def finalists(ways: Sequence[JudgeWay], config: Config) -> list[JudgeWay]:
    """The recipe's way to judge and the best other, which see more pairs than the rest; the two best where
    the recipe's asks no model."""
    own = [way for way in ways if way.is_recipe and way.skipped is None]
    others = _others(ways, config) or [w for w in ways if w.skipped is None and not w.is_recipe]
    return [*own, *sorted(others, key=_merit, reverse=True)][:FINALISTS]


def _others(ways: Sequence[JudgeWay], config: Config) -> list[JudgeWay]:
    """Ways other than the recipe's whose verdicts can be read and hang on the answers."""
    return [way for way in ways if way.skipped is None and not way.is_recipe and passes(way, config)]


def _merit(way: JudgeWay) -> tuple[float, float]:
    return _right(way) or 0, way.mass or 0


def _is_better(way: JudgeWay, own: JudgeWay, config: Config) -> bool:
    """Whether a way that passes takes the place of the recipe's: it is right more often, and not by chance.
    Where the recipe's fails, more than half and no less than by the recipe's will do."""
    right, before = _right(way), _right(own)
    if way.accuracy is None or right is None or before is None:
        return not passes(own, config)
    if passes(own, config):
        return right > before and _least(way) > 0.5
    return right > 0.5 and right >= before


def _least(way: JudgeWay) -> float:
    """How often a way is right at least: the recipe's by its own interval, another one, which was picked, by
    the interval that holds for all ways together."""
    if way.accuracy is None:
        return 0.0
    return way.accuracy.ci95[0] if way.is_recipe or way.least is None else way.least


def _right(way: JudgeWay) -> float | None:
    return None if way.accuracy is None else way.accuracy.rate


def verdict_words(preview: Preview, config: Config) -> Change | None:
    """The judge would rather say something else than a verdict, or another way of asking is better."""
    own, chosen = own_judge(preview), chosen_judge(preview, config)
    if own is None or chosen is None:
        return None
    if chosen.name != own.name:
        says = f"{_trouble(own, config)}. With {_keys(chosen, config)} {_merits(chosen, config)}."
        return Change(rule="verdict words", says=says, settings=dict(chosen.settings))
    if has_mass(own):
        return None
    says = (
        f"{_trouble(own, config)}, and no other way was right in more than half of as many pairs. Take "
        "another judging.template."
    )
    return Change(rule="verdict words", says=says)


def _trouble(own: JudgeWay, config: Config) -> str:
    """What the recipe's way lacks."""
    way = "By the recipe's way"
    if not own.verdicts:
        return f"{way} no verdict can be read"
    if not has_mass(own):
        seen = f"{way} the verdict words have probability {own.mass or 0:.2f}"
    elif not is_fair(own, config):
        seen = f"{way} {_slot(own)} of the verdicts are for one slot"
    else:
        return (
            f"{way} the judge is right in {percent(_right(own), 0)} of the pairs whose better answer is known"
        )
    return seen if _right(own) is None else f"{seen}, and the judge is right in {percent(_right(own), 0)}"


def _keys(way: JudgeWay, config: Config) -> str:
    """The keys that make a way, as far as the recipe has them otherwise."""
    keys = differing(config, way.settings) or way.settings
    return ", ".join(f"{key} {value!r}" for key, value in keys.items())


def _merits(way: JudgeWay, config: Config) -> str:
    """What a way has."""
    found = [] if way.mass is None else [f"the verdict words have probability {way.mass:.2f}"]
    if way.settings.get("judging.method") != "pointwise":
        found.append(f"{_slot(way)} of the verdicts are for one slot")
    if _right(way) is not None:
        found.append(f"the judge is right in {percent(_right(way), 0)}")
    return ", ".join(found[:-1]) + " and " * (len(found) > 1) + "".join(found[-1:])


def one_slot(preview: Preview, config: Config) -> Change | None:
    """The slot decides."""
    way = chosen_judge(preview, config)
    if way is None or way.first_slot is None or is_fair(way, config):
        return None
    where = "first" if way.first_slot > ONE_SLOT else "second"
    says = (
        f"{_slot(way)} of the verdicts are for the answer that stands {where}: position decides, not the "
        "answer: this judge is worth nothing yet. Take a larger model as judge (judging.engine.model), or "
        "labels that a program gives (prompts.checkable 1, judging.method checks)."
    )
    return Change(rule="one slot", says=says)


def chance(preview: Preview, config: Config) -> Change | None:
    """The judge is not told from a coin."""
    way = chosen_judge(preview, config)
    if way is None or not way.verdicts or way.accuracy is None or way.accuracy.rate is None:
        return None
    if _least(way) > 0.5:
        return None
    low, high = way.accuracy.ci95
    found = "that is worse than a coin" if high < 0.5 else "that does not tell it from a coin"
    if low > 0.5:
        found = (
            "it was picked as the best of several ways, so this does not show that it is better than a coin"
        )
    says = (
        f"On {way.accuracy.n} pairs whose better answer is known the judge is right in "
        f"{percent(way.accuracy.rate, 0)} [{percent(low, 0)}, {percent(high, 0)}]: {found}. `sao audit` "
        "measures a run's judge on more pairs. If it stays so there, take a larger model as judge "
        "(judging.engine.model), or labels that a program gives (prompts.checkable 1, judging.method checks)."
    )
    return Change(rule="chance", says=says)


def _slot(way: JudgeWay) -> str:
    share = way.first_slot if way.first_slot is not None else 0.5
    return percent(max(share, 1 - share), 0)


# The machine.


def long_run(preview: Preview, config: Config) -> Change | None:
    """The run takes more than a day."""
    seconds = preview.run.seconds
    if seconds is None or seconds <= LONG_RUN:
        return None
    engine = "vLLM (pip install 'sao[vllm]'), " if preview.engine.startswith("transformers") else ""
    says = (
        f"The whole run would take {seconds / 3600:.0f} hours here: {engine}a GPU, fewer personas "
        "(personas.n), or shorter answers. `sao plan` computes the hours of a GPU."
    )
    return Change(rule="long run", says=says)


def crowded(preview: Preview, config: Config) -> Change | None:
    """Other programs use the CPUs: several threads then wait for each other."""
    if preview.other_load is None or preview.cpus < 2 or config.engine.threads == 1:
        return None
    if preview.other_load < preview.cpus / 2:
        return None
    says = (
        f"Other programs would fill about {preview.other_load:.1f} of the {preview.cpus} CPUs. Threads then "
        "wait for each other (twelve times slower was seen): engine.threads 1, or an idle machine."
    )
    return Change(rule="crowded", says=says, settings={"engine.threads": "1"})


def half_precision(preview: Preview, config: Config) -> Change | None:
    """The CPU may be faster in bfloat16, and the run is long enough for that to count."""
    seconds = preview.run.seconds
    if not preview.quick_bfloat16 or config.engine.dtype != "auto" or (seconds or 0) < WORTH_ROUNDING:
        return None
    if not preview.engine.startswith("transformers"):
        return None
    says = (
        "This CPU has instructions for bfloat16. What they bring differs: with SmolLM2-135M one such CPU "
        "gave verdicts 1.4 times as fast, another one no faster. Look again with --engine.dtype bfloat16 "
        "and compare the times. It rounds numbers more."
    )
    return Change(rule="half precision", says=says)


RULES: tuple[Rule, ...] = (
    prompt_method, few_prompts, cut_prompts, same_prompts,
    cut_answers, empty_answers, looping_answers, same_answers,
    verdict_words, one_slot, chance,
    long_run, crowded, half_precision,
)  # fmt: skip
"""All rules, in the order of the steps."""
