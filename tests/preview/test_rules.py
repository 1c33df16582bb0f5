"""Which way to judge is recommended, and in which words."""

from collections.abc import Sequence

import pytest

from sao.config import Config, make_config
from sao.preview.rules import changes, chosen_judge, finalists
from sao.preview.ways import RECIPE, judge_ways
from sao.results.base import Rate
from sao.results.preview import Change, JudgeWay, Preview, PromptWay, RunCost
from sao.statistics import wilson

PAIRS = 50
POINTWISE = "one answer at a time"
CONFIG = make_config({"model": "planted"})


def rate(right: float) -> Rate:
    return Rate(rate=right, ci95=wilson(right * PAIRS, PAIRS), n=PAIRS)


def looked(config: Config, rights: Sequence[float | None], **own: object) -> Preview:
    """A preview with the ways to judge right so often; `own` are figures of the recipe's way."""
    found = []
    for (name, keys, is_recipe), right in zip(judge_ways(config), rights, strict=True):
        slot = 0.5 if name == POINTWISE else 0.7
        way = JudgeWay(name=name, settings=dict(keys), is_recipe=is_recipe, pairs=PAIRS, verdicts=2 * PAIRS)
        accuracy = None if right is None else rate(right)
        figures = {"mass": 0.9, "first_slot": slot, "accuracy": accuracy, **(own if is_recipe else {})}
        found.append(way.model_copy(update=figures))
    return Preview(model="planted", engine="given", folder="look", judging=found)


def chosen(rights: Sequence[float | None], **own: object) -> str:
    way = chosen_judge(looked(CONFIG, rights, **own), CONFIG)
    assert way is not None
    return way.name


def advice(preview: Preview, config: Config = CONFIG) -> Change:
    return next(change for change in changes(preview, config) if change.rule == "verdict words")


UNREAD = {"verdicts": 0, "mass": 0.01, "first_slot": None}
NO_MASS = {"mass": 0.1}
ONE_SLOT = {"first_slot": 0.98}


@pytest.mark.parametrize("own", [{}, NO_MASS, ONE_SLOT])
def test_the_way_that_is_right_most_often_is_recommended(own: dict[str, object]) -> None:
    assert chosen([0.60, 0.85, 0.80, 0.45], **own) == "prefill"
    assert chosen([0.60, 0.70, 0.80, 0.45], **own) == "first or second"
    assert chosen([0.60, 0.55, 0.50, 0.85], **own) == POINTWISE


@pytest.mark.parametrize("own", [{}, NO_MASS, ONE_SLOT])
def test_a_way_that_is_right_less_often_is_not(own: dict[str, object]) -> None:
    assert chosen([0.60, 0.55, 0.50, 0.45], **own) == RECIPE


def test_a_way_that_may_be_right_by_chance_takes_the_place_of_one_that_fails() -> None:
    assert chosen([0.50, 0.58, 0.50, 0.45]) == RECIPE
    assert chosen([0.50, 0.58, 0.50, 0.45], **ONE_SLOT) == "prefill"
    assert chosen([0.50, 0.50, 0.50, 0.50], **UNREAD) == RECIPE


def test_the_best_of_several_must_be_better_than_chance_for_all_of_them() -> None:
    found = looked(CONFIG, [0.50, 0.68, 0.50, 0.45])
    ways = [way.model_copy(update={"least": 0.48}) for way in found.judging]
    assert found.judging[1].accuracy is not None and found.judging[1].accuracy.ci95[0] > 0.5
    judge = chosen_judge(found.model_copy(update={"judging": ways}), CONFIG)
    assert judge is not None and judge.name == RECIPE


def test_a_way_that_judged_fewer_pairs_is_not_compared() -> None:
    found = looked(CONFIG, [0.50, 0.80, 0.90, 0.45])
    ways = [
        way.model_copy(update={"pairs": 8}) if way.name == "first or second" else way for way in found.judging
    ]
    judge = chosen_judge(found.model_copy(update={"judging": ways}), CONFIG)
    assert judge is not None and judge.name == "prefill"


def test_the_sentence_on_chance_says_which_interval_counts() -> None:
    found = looked(CONFIG, [0.50, 0.68, 0.50, 0.45], **ONE_SLOT)
    ways = [way.model_copy(update={"least": 0.48}) for way in found.judging]
    said = changes(found.model_copy(update={"judging": ways}), CONFIG)
    assert any("picked as the best of several ways" in change.says for change in said)


def prompt_ways(own: int, other: int) -> Preview:
    """Two ways to get prompts, by how many of 16 are usable."""
    ways = [
        PromptWay(name=name, is_recipe=name == "instruct", asked=16, usable=n, settings={})
        for name, n in (("instruct", own), ("user_turn", other))
    ]
    best = "instruct" if own >= other else "user_turn"
    return Preview(model="planted", engine="given", folder="look", prompts=ways, best=best)


def test_the_way_that_is_kept_must_give_enough_prompts() -> None:
    few = {change.rule: change for change in changes(prompt_ways(5, 8), CONFIG)}
    assert "prompt method" not in few
    assert few["few prompts"].settings == {"max_drop_share": "0.8"}  # 0.69 are lost
    assert {change.rule for change in changes(prompt_ways(2, 8), CONFIG)} == {"prompt method"}
    assert changes(prompt_ways(9, 8), CONFIG) == []


def test_the_recipes_way_and_the_best_other_see_more_pairs() -> None:
    ways = looked(CONFIG, [0.40, 0.60, 0.70, 0.45]).judging
    assert [way.name for way in finalists(ways, CONFIG)] == [RECIPE, "first or second"]
    no_mass = [way.model_copy(update={"mass": 0.1}) if way.name == "first or second" else way for way in ways]
    assert [way.name for way in finalists(no_mass, CONFIG)] == [RECIPE, "prefill"]
    skipped = [ways[0].model_copy(update={"skipped": "asks no model"}), *ways[1:]]
    assert [way.name for way in finalists(skipped, CONFIG)] == ["first or second", "prefill"]


def test_without_known_pairs_a_way_that_passes_takes_the_place_of_one_that_fails() -> None:
    assert chosen([None] * 4) == RECIPE
    assert chosen([None] * 4, **UNREAD) != RECIPE


def test_a_way_of_one_slot_or_without_mass_is_not_recommended() -> None:
    preview = looked(CONFIG, [0.60, 0.85, 0.80, 0.45])
    own, *others = preview.judging
    for fault in ONE_SLOT, NO_MASS:
        broken = [way.model_copy(update=fault) for way in others]
        shown = preview.model_copy(update={"judging": [own, *broken]})
        way = chosen_judge(shown, CONFIG)
        assert way is not None and way.is_recipe


def test_a_recipe_that_sees_one_answer_at_a_time_has_no_slots() -> None:
    config = make_config({"model": "planted", "judging": {"method": "pointwise"}})
    preview = looked(config, [0.8, 0.7, 0.7], first_slot=1.0)
    assert {change.rule for change in changes(preview, config)}.isdisjoint({"verdict words", "one slot"})


def test_the_sentence_names_the_method_where_it_changes() -> None:
    says = advice(looked(CONFIG, [0.60, 0.5, 0.5, 0.85], **NO_MASS)).says
    assert says == (
        "By the recipe's way the verdict words have probability 0.10, and the judge is right in 60 %. "
        "With judging.method 'pointwise' the verdict words have probability 0.90 and the judge is right in "
        "85 %."
    )
    says = advice(looked(CONFIG, [0.60, 0.85, 0.5, 0.5])).says
    assert says == (
        "By the recipe's way the judge is right in 60 % of the pairs whose better answer is known. With "
        "judging.prefill 'The best answer is number ' the verdict words have probability 0.90, 70 % of the "
        "verdicts are for one slot and the judge is right in 85 %."
    )


def test_the_settings_of_the_change_reset_what_belongs_to_the_recipes_way() -> None:
    config = make_config({"model": "planted", "judging": {"method": "text", "samples": 3}})
    change = advice(looked(config, [0.60, 0.5, 0.5, 0.85]), config)
    assert change.settings == {"judging.samples": "1", "judging.method": "pointwise"}
    assert "With judging.samples '1', judging.method 'pointwise' the" in change.says


def test_no_way_is_better() -> None:
    says = advice(looked(CONFIG, [0.5, 0.5, 0.5, 0.5], **UNREAD)).says
    no_other = "and no other way was right in more than half of as many pairs."
    assert says.startswith(f"By the recipe's way no verdict can be read, {no_other}")


def test_bfloat16_is_to_be_tried_where_the_cpu_may_be_faster_and_the_run_is_long() -> None:
    long, short = RunCost(seconds=7200.0), RunCost(seconds=300.0)
    preview = Preview(model="planted", engine="transformers", folder="look", quick_bfloat16=True, run=long)
    (change,) = changes(preview, CONFIG)
    assert "--engine.dtype bfloat16" in change.says
    assert change.settings == {}  # on some such CPUs it is no faster: the recipe keeps its numbers
    assert changes(preview.model_copy(update={"run": short}), CONFIG) == []
    assert changes(preview.model_copy(update={"quick_bfloat16": False}), CONFIG) == []
    assert changes(preview, make_config({"model": "planted", "engine": {"dtype": "float32"}})) == []
    assert changes(preview.model_copy(update={"engine": "vllm"}), CONFIG) == []


def test_a_judge_that_is_worse_than_a_coin_is_called_so() -> None:
    def says(right: float) -> str:
        found = changes(looked(CONFIG, [right, 0.3, 0.3, 0.3]), CONFIG)
        return next((change.says for change in found if change.rule == "chance"), "")

    assert "worse than a coin" in says(0.3)
    assert "does not tell it from a coin" in says(0.5)
    assert says(0.9) == ""


@pytest.mark.parametrize("method", ["checks", "random", "longer"])
def test_labels_of_no_model_are_left_as_they_are(method: str) -> None:
    """The preview looks at the model's own verdicts then, which the run does not use."""
    config = make_config({"model": "planted", "judging": {"method": method}, "prompts": {"checkable": 1}})
    found = changes(looked(CONFIG, [0.5, 0.9, 0.9, 0.9], first_slot=0.98), config)
    assert not {"verdict words", "one slot", "chance"} & {change.rule for change in found}
