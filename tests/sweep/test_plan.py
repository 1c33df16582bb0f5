"""Which cells a sweep has."""

from pathlib import Path

import pytest

from sao.config import TrainConfig, make_config
from sao.errors import ConfigError
from sao.sweep import make_plan, read_factors, split_values
from sao.sweep.plan import run_name
from support.errors import raises
from support.sweeps import small


def labels(root: Path, *over: str, product: bool = False) -> list[str]:
    return [cell.label for cell in make_plan(small(), over, root, product=product).cells]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("checks,logprob", ["checks", "logprob"]),
        ("[A,B]", ["[A,B]"]),
        ("[A, B],[C, D]", ["[A, B]", "[C, D]"]),
        ("null,{name: openai, model: x}", ["null", "{name: openai, model: x}"]),
        ('["1,", "2"],b', ['["1,", "2"]', "b"]),
        ('"a, b",c', ['"a, b"', "c"]),
        ("it's,so", ["it's", "so"]),
        ("", [""]),
    ],
)
def test_commas_separate_values_but_not_within_one(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_values_are_read_as_elsewhere(tmp_path: Path) -> None:
    over = ["judging.choices=[A,B],[C,D]", "train.lr=1e-5", 'prompts.marker="ask, please:",say:']
    plan = make_plan(small(), over, tmp_path)
    assert [cell.settings for cell in plan.cells] == [
        {},
        {"judging.choices": ["A", "B"]},
        {"judging.choices": ["C", "D"]},
        {"train.lr": 1e-5},
        {"prompts.marker": "ask, please:"},
        {"prompts.marker": "say:"},
    ]
    assert plan.cells[1].config.judging.choices == ("A", "B")
    assert plan.cells[3].config.judging.choices == ("1", "2")


def test_one_factor_at_a_time_with_the_recipe_itself(tmp_path: Path) -> None:
    assert labels(tmp_path, "judging.method=random,longer", "train.lr=1e-5") == [
        "the recipe", "judging.method=random", "judging.method=longer", "train.lr=1e-05",
    ]  # fmt: skip


def test_the_product(tmp_path: Path) -> None:
    over = ("judging.method=random,longer", "train.lr=1e-5,2e-5")
    assert labels(tmp_path, *over, product=True) == [
        "judging.method=random train.lr=1e-05",
        "judging.method=random train.lr=2e-05",
        "judging.method=longer train.lr=1e-05",
        "judging.method=longer train.lr=2e-05",
    ]
    plan = make_plan(small(), over, tmp_path, product=True)
    assert plan.base.settings == {"judging.method": "random", "train.lr": 1e-5}
    with_recipe = make_plan(small(), ["judging.method=random,logprob"], tmp_path, product=True)
    assert with_recipe.base.settings == {}


def test_seeds_repeat_every_setting(tmp_path: Path) -> None:
    for product in (False, True):
        over = ("judging.method=logprob,random", "train.seed=0,1")
        assert labels(tmp_path, *over, product=product) == [
            "the recipe train.seed=0", "judging.method=random train.seed=0",
            "the recipe train.seed=1", "judging.method=random train.seed=1",
        ]  # fmt: skip
    plan = make_plan(small(), ["train.seed=0,1", "seed=3,4"], tmp_path)
    assert [cell.label for cell in plan.cells] == [
        f"the recipe train.seed={a} seed={b}" for a in (0, 1) for b in (3, 4)
    ]


def test_cells_that_make_the_same_records_are_one_and_that_is_said(tmp_path: Path) -> None:
    over = ["judging.method=logprob,random", "train.micro_batch_size=16", "train.lr=1e-4,0.0001"]
    plan = make_plan(small(), over, tmp_path)
    assert [cell.label for cell in plan.cells] == ["the recipe", "judging.method=random", "train.lr=0.0001"]
    said = [note.partition(" makes")[0] for note in plan.notes]
    assert said == ["judging.method=logprob", "train.micro_batch_size=16", "train.lr=0.0001"]


@pytest.mark.parametrize(
    ("over", "key", "match"),
    [
        ([], "--over", "nothing to sweep"),
        (["train.lr"], "--over", "KEY=VALUE"),
        (["=1"], "--over", "KEY=VALUE"),
        (["train.lr="], "train.lr", "a value is missing"),
        (["train.lr=1e-5,"], "train.lr", "a value is missing"),
        (['prompts.marker="\\q",x'], "prompts.marker", "backslash"),
        (["train.lr=1e-5,1e-5"], "train.lr", "given 2 times"),
        (["train.lr=1e-5", "train.lr=2e-5"], "train.lr", "given 2 times"),
        (["train.lrr=1e-5"], "train.lrr", "Did you mean train.lr?"),
        (["train.lr=1e-5,-1"], "train.lr", "train.lr=-1"),
        (["judging.method=random,guess"], "judging.method", "guess"),
        (["train.lr={"], "train.lr", "not a YAML value"),
        (["personas.held_out=0"], "personas.held_out", "nothing to compare on"),
    ],
)
def test_wrong_factors_are_errors_before_anything_is_run(
    over: list[str], key: str, match: str, tmp_path: Path
) -> None:
    with raises(ConfigError, key=key) as caught:
        make_plan(small(), over, tmp_path / "sweep")
    assert match in str(caught.value)
    assert not (tmp_path / "sweep").exists()


def test_a_recipe_without_held_out_prompts_is_an_error(tmp_path: Path) -> None:
    with raises(ConfigError, key="personas.held_out"):
        make_plan(small(personas_held_out="0"), ["train.lr=1e-5"], tmp_path)


def test_what_a_run_folder_cannot_hold_beside_another_has_one_of_its_own(tmp_path: Path) -> None:
    def folders(*over: str) -> list[str]:
        return [cell.run for cell in make_plan(small(), over, tmp_path).cells]

    shared = ("judging.method=random,longer", "train.lr=1e-5", "responses.n=4", "prompts.temperature=1")
    assert len(set(folders(*shared, "train.seed=0,1"))) == 1
    sizes = folders("personas.n=48", "personas.held_out=20")
    assert [name.rsplit("-", 1)[0] for name in sizes] == [
        "run-n24-h16-seed0", "run-n48-h16-seed0", "run-n24-h20-seed0",
    ]  # fmt: skip
    for over in ("seed=0,1", "personas.source=builtin:general"):
        assert len(set(folders(over))) == 2, over
    assert run_name(small()) != run_name(small(model="some/other"))
    assert run_name(small()) != run_name(small(engine_name="openai"))
    assert run_name(small()) == run_name(small(engine_slots="8"))


def test_every_setting_has_a_fingerprint_of_its_own(tmp_path: Path) -> None:
    over = ["judging.method=random", "personas.n=48", "seed=0,1", "pairs.keep=all", "train.beta=3"]
    cells = make_plan(small(), over, tmp_path).cells
    assert len({cell.fingerprint for cell in cells}) == len(cells) == 10
    again = make_plan(small(), over, tmp_path).cells
    assert [cell.fingerprint for cell in again] == [cell.fingerprint for cell in cells]


def test_without_a_judge_of_the_evaluation_cells_are_still_told_apart(tmp_path: Path) -> None:
    over = ["evaluation.judged=false,true", "judging.method=random", "train.lr=1e-5"]
    cells = make_plan(small(), over, tmp_path, product=True).cells
    assert len({cell.fingerprint for cell in cells}) == len(cells) == 2


def test_a_changed_template_makes_another_cell(tmp_path: Path) -> None:
    template = tmp_path / "judge.txt"
    template.write_text("{prompt} {first} {second}")
    over = [f"judging.template={template}"]
    before = make_plan(small(), over, tmp_path).cells
    template.write_text("Which is better? {prompt} {first} {second}")
    after = make_plan(small(), over, tmp_path).cells
    assert before[0].fingerprint == after[0].fingerprint
    assert before[1].fingerprint != after[1].fingerprint


def test_keys_that_end_in_seed_are_repeats() -> None:
    kinds = {
        factor.key: factor.is_repeat for factor in read_factors(["train.seed=0", "seed=1", "train.lr=1"])
    }
    assert kinds == {"train.seed": True, "seed": True, "train.lr": False}


def test_a_sweep_uploads_nothing(tmp_path: Path) -> None:
    """Else the last control's model would be the one that is shared."""
    recipe = small().model_copy(update={"train": TrainConfig(push_to_hub="me/x")})
    plan = make_plan(recipe, ["judging.method=random"], tmp_path)
    assert [cell.config.train.push_to_hub for cell in plan.cells] == [None, None]
    assert plan.notes[0] == "train.push_to_hub: a sweep uploads nothing"


def test_cells_that_nothing_compares_are_refused_before_any_is_run(tmp_path: Path) -> None:
    own = {"model": "some/model", "personas": {"source": "builtin:general"}, "evaluation": {"judged": False}}
    with raises(ConfigError, key="evaluation.checkable", match="nothing tells which setting is better"):
        make_plan(make_config(own), ["judging.method=random"], tmp_path)
