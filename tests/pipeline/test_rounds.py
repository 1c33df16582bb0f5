"""Rounds as they are laid out: which round has which folders, who does what in it, whose personas ask."""

from pathlib import Path
from typing import Any

import pytest

from sao.config import Config, PersonasConfig, PromptsConfig, make_config
from sao.errors import ConfigError, DataError, StoreError, TrainingError
from sao.method import Outcome, keep_summary, read_summary, upload
from sao.pipeline.roles import roles_of
from sao.pipeline.rounds import Round
from sao.pipeline.steps import STEPS
from sao.pipeline.train_step import raise_told, told
from sao.records import Persona, Prompt
from sao.results import Summary
from sao.stages.pairs import NOT_NEWER, Duo, Panel, pairs_of
from sao.stages.personas import DistinctPersonas, read_personas
from sao.stages.prompts import given_prompts
from sao.stages.rows import is_held_out
from sao.store.files import write_atomic
from support.errors import raises
from support.made_up import a_round, answers, said


def config(**sections: Any) -> Config:
    people = {"source": "builtin:world", "n": 10, "held_out": 4}
    return make_config({"model": "builtin:world", "personas": people, **sections})


def rounds(n: int = 3, **sections: Any) -> list[Round]:
    found = [Round(config(**sections), Path("x"), STEPS)]
    while len(found) < n:
        found.append(found[-1].next())
    return found


def folders(run: Round) -> dict[str, str]:
    return {
        step.name: " ".join(str(stage.path) for stage in run.stages(step.name))
        for step in STEPS
        if run.has(step.name)
    }


# Where records lie.


def test_the_first_round_is_the_same_whatever_stands_in_rounds() -> None:
    alone = folders(rounds(1)[0])
    for key, value in {
        "n": 4, "personas": "same", "judge": "both", "rejected": "initial", "train_from": "initial",
        "data": "all", "reference": "initial", "lr_decay": 0.5, "beta_decay": 0.5, "keep": "best", "stop": [],
    }.items():  # fmt: skip
        assert folders(rounds(1, rounds={key: value})[0]) == alone, key


def test_later_prompts_hang_on_the_number_of_held_out_ones_that_they_may_not_repeat() -> None:
    few, more = (rounds(2, personas={"n": 10, "held_out": n})[1] for n in (4, 8))
    assert few.stage("prompts").path != more.stage("prompts").path
    assert few.stage("heldout_tuned").settings["step"] != more.stage("heldout_tuned").settings["step"]


def test_given_prompts_that_are_answered_again_are_records_of_their_own(tmp_path: Path) -> None:
    write_atomic(tmp_path / "p.jsonl", '{"prompt": "a"}\n{"prompt": "b"}\n')
    given = {"prompts": {"source": str(tmp_path / "p.jsonl")}, "rounds": {"personas": "same"}}
    first, second = rounds(2, **given)
    assert first.stage("prompts").key != second.stage("prompts").key


@pytest.mark.parametrize(
    ("key", "value", "moved"),
    [
        ("personas", "same", {"personas", "prompts"}),
        ("judge", "current", {"judgments", "pairs"}),
        ("judge", "both", {"judgments", "pairs"}),
        ("rejected", "initial", {"responses", "judgments", "pairs"}),
        ("train_from", "initial", {"train"}),
        ("data", "all", {"train"}),
        ("lr", [1e-6, 2e-6], {"train"}),
        ("lr_decay", 0.5, {"train"}),
        ("beta", [10.0, 5.0], {"train"}),
        ("beta_decay", 0.5, {"train"}),
    ],
)
def test_a_key_moves_its_steps_of_later_rounds(key: str, value: Any, moved: set[str]) -> None:
    train = {"beta": 10.0}
    plain, changed = (folders(rounds(2, rounds=own, train=train)[1]) for own in ({}, {key: value}))
    differing = {step for step in plain if plain[step] != changed[step]}
    assert moved <= differing
    assert not differing & {"train": {"judgments", "pairs", "responses"}}.get(next(iter(moved)), set())


def test_what_changes_in_the_third_round_leaves_the_two_before_it() -> None:
    plain, changed = (rounds(3, rounds={"lr": lr}) for lr in ([1e-6, 1e-6, 1e-6], [1e-6, 1e-6, 3e-6]))
    assert [folders(a) == folders(b) for a, b in zip(plain, changed, strict=True)] == [True, True, False]


def test_held_out_prompts_and_the_first_models_answers_are_those_of_the_first_round() -> None:
    first, second, third = rounds()
    for later in (second, third):
        assert later.stage("heldout_base").path == first.stage("heldout_base").path
        assert later.stage("heldout_tuned").path.parent == later.place
        upstream = later.stage("heldout_tuned").settings["step"]["upstream"]
        assert upstream == {"train": later.stage("train").key, "filtered": first.stage("filtered").key}
    assert not first.has("comparisons_before")
    assert second.has("comparisons_before")


def test_the_last_value_of_a_list_is_for_all_rounds_after_it() -> None:
    found = rounds(4, rounds={"lr": [3e-6, 1e-6], "beta_decay": 0.5}, train={"beta": 8.0})
    assert [r.config.train.lr for r in found] == [3e-6, 1e-6, 1e-6, 1e-6]
    assert [r.config.train.beta for r in found] == [8.0, 4.0, 2.0, 1.0]
    assert [r.config.train.lr for r in rounds(rounds={"lr_decay": 0.5}, train={"lr": 8e-6})] == [
        8e-6, 4e-6, 2e-6,
    ]  # fmt: skip


# Who does what.


def models(run: Round) -> dict[str, str]:
    roles = run.roles
    return {
        "policy": roles.policy.model, "initial": roles.initial.model, "reference": roles.reference.model,
        "base": roles.base.model, "reader": roles.reader.role.model,
        "rejected": "" if roles.rejected is None else roles.rejected.model,
        "judges": " ".join(judge.role.model for judge in roles.judges),
    }  # fmt: skip


def test_a_round_begins_with_the_model_that_the_one_before_trained() -> None:
    first, second, third = rounds()
    one, two = str(first.model_dir), str(second.model_dir)
    fixed = {"base": "builtin:world", "reader": "builtin:world", "rejected": "", "judges": "builtin:world"}
    assert models(first) == dict.fromkeys(("policy", "initial", "reference"), "builtin:world") | fixed
    assert models(second) == dict.fromkeys(("policy", "initial", "reference"), one) | fixed
    assert models(third) == dict.fromkeys(("policy", "initial", "reference"), two) | fixed


def test_every_choice_of_who_does_what() -> None:
    def second(**own: str) -> tuple[str, dict[str, str]]:
        first, found = rounds(2, rounds=own)
        return str(first.model_dir), models(found)

    one, found = second(judge="current")
    assert found["judges"] == one
    assert found["reader"] == "builtin:world"  # the comparison's judge stays frozen
    one, found = second(judge="both")
    assert found["judges"] == f"builtin:world {one}"
    one, found = second(train_from="initial")
    assert (found["policy"], found["initial"], found["reference"]) == (one, "builtin:world", "builtin:world")
    one, found = second(reference="initial")
    assert (found["initial"], found["reference"]) == (one, "builtin:world")
    one, found = second(rejected="initial")
    assert (found["policy"], found["rejected"]) == (one, "builtin:world")


def test_both_judges_have_names_of_their_own_and_a_named_one_stays() -> None:
    assert [judge.name for judge in rounds(2, rounds={"judge": "both"})[1].roles.judges] == [
        "self at first", "self now",
    ]  # fmt: skip
    named = {"name": "vllm", "model": "other/judge"}
    for who in ("initial", "current", "both"):
        (judge,) = roles_of(config(rounds={"judge": who}, judging={"engine": named}), "trained").judges
        assert judge.role.model == "other/judge"


@pytest.mark.parametrize(
    ("sections", "match"),
    [
        ({"engine": {"name": "openai"}, "model": "some/model"}, "a server cannot be given the weights"),
        ({"engine": {"name": "vllm", "vllm": {"lora": "adapter"}}}, "Merge the adapter"),
        ({"pairs": {"source": "pairs.jsonl"}}, "the pairs are given"),
        ({"personas": {"held_out": 0}}, "Give some, such as 200"),
        ({"rounds": {"n": 2, "lr": []}}, "a value above 0"),
        ({"evaluation": {"judged": False}}, "nothing tells the best round"),
        ({"evaluation": {"engine": {"name": "openai"}}}, "cannot be given a round's weights"),
        (
            {"rounds": {"n": 2, "judge": "current"}, "judging": {"engine": {"name": "openai"}}},
            "judging.engine is a server",
        ),
        ({"rounds": {"n": 2, "lr": [1e-6, 0.0]}}, "a value above 0"),
        ({"rounds": {"n": 2, "lr": [1e-6], "lr_decay": 0.5}}, "both given"),
    ],
)
def test_what_cannot_be_done_in_rounds_is_refused_with_what_to_do(
    sections: dict[str, Any], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        make_config({"rounds": {"n": 2}, **sections})


# Who asks.


def test_fresh_personas_are_none_of_the_earlier_ones_and_never_held_out() -> None:
    people = PersonasConfig(source="builtin:world", n=50, held_out=20)
    first = list(read_personas(people, 3))
    later = [list(read_personas(people.model_copy(update={"held_out": 20}), 3, skip)) for skip in (50, 100)]
    texts = [{p.text for p in group} for group in (first, *later)]
    assert [len(group) for group in texts] == [70, 50, 50]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    for group in later:
        assert sorted(p.row for p in group) == [2 * i for i in range(50)]
    with raises(DataError, key="personas.n", match="17000 went to earlier rounds"):
        list(read_personas(people.model_copy(update={"n": 1000}), 3, 17000))


def test_given_prompts_go_on_where_the_round_before_ended(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    write_atomic(file, "".join(f'{{"prompt": "question {i}"}}\n' for i in range(40)))
    asked, people = PromptsConfig(source=str(file)), PersonasConfig(n=10, held_out=5)
    first = list(given_prompts(asked, people, 1, "k"))
    second = list(given_prompts(asked, people, 1, "k", 10, later=True))
    same = list(given_prompts(asked, people, 1, "k", 0, later=True))
    assert len(first) == 15
    assert len(second) == len(same) == 10
    held_out = {p.text for p in first if is_held_out(p.row)}
    assert {p.text for p in same} == {p.text for p in first} - held_out
    assert not {p.text for p in second} & {p.text for p in first}
    assert sorted(p.row for p in second) == [2 * i for i in range(10)]


def test_personas_that_the_model_writes_repeat_none_of_earlier_rounds() -> None:
    before = [Persona(id=str(i), row=2 * i, text=f"works as number {i}") for i in range(3)]
    chosen = DistinctPersonas(1.0, before)
    drafts = [Persona(id=f"d{i}", row=i, text=f"works as number {i}") for i in range(5)]
    assert chosen.add(drafts) == 2
    assert [p.text for p in chosen.new] == ["works as number 3", "works as number 4"]
    assert sum(chosen.counts(9, 0)) <= 2


def test_where_the_first_model_writes_the_rejected_answers_no_other_pair_is_kept() -> None:
    prompt = Prompt(id="prompt0", row=0, persona_id="x", text="q")
    texts = answers(["new one", "new two", "old one", "old two"])
    how, panel = (
        make_config({"pairs": {"rule": "all", "keep": "all"}}).pairs,
        Panel(calibrations={}, weights={}),
    )
    for p_first, expected in ((0.9, {(0, 2), (0, 3), (1, 2), (1, 3)}), (0.1, set())):
        verdicts = [said(texts[i], texts[j], p_first) for i in range(4) for j in range(i + 1, 4)]
        found = pairs_of(prompt, texts, verdicts, how, "k", panel, newer=2)
        assert {pair for pair, outcome in found.items() if isinstance(outcome, Duo)} == expected


def test_an_unclear_pair_keeps_its_own_reason_where_the_first_model_writes_too() -> None:
    """Else it would count as a clear preference (`kept_share`)."""
    prompt, texts = Prompt(id="prompt0", row=0, persona_id="x", text="q"), answers(["new", "old"])
    how, panel = make_config({}).pairs, Panel(calibrations={}, weights={})
    for p_first, reason in ((0.51, "p too small"), (0.01, NOT_NEWER)):
        verdicts = [said(texts[0], texts[1], p_first), said(texts[1], texts[0], 1 - p_first)]
        assert pairs_of(prompt, texts, verdicts, how, "k", panel, newer=1) == {(0, 1): reason}


# What a run gives back.


def summary_of(best: int | None, *worth: float) -> Summary:
    results = [a_round(n, win) for n, win in enumerate(worth, 1)]
    return Summary(
        model="m", seed=0, judging="logprob", worked=True, funnel=[], oracle=None, paths={},
        rounds=results, best=best,
    )  # fmt: skip


def test_to_look_at_one_round_forgets_none(tmp_path: Path) -> None:
    path, whole = tmp_path / "summary.json", summary_of(3, 0.5, 0.6, 0.7)
    keep_summary(path, whole)
    keep_summary(path, summary_of(None, 0.5, 0.6), number=2)
    assert read_summary(path) == whole
    changed = summary_of(None, 0.5, 0.4)
    keep_summary(path, changed, number=2)
    assert read_summary(path) == changed


def test_a_model_is_uploaded_once_and_the_same_command_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Path] = []

    def push_model(folder: Path, repository: str) -> str:
        sent.append(folder)
        if len(sent) == 1:
            raise StoreError("the hub is away", key="train.push_to_hub")
        return repository

    monkeypatch.setattr("sao.pipeline.train_step.push_model", push_model)
    monkeypatch.setattr(Round, "is_trained", True)
    runs = rounds(3, train={"push_to_hub": "me/x"}, rounds={"n": 3})
    runs = [Round(runs[0].config, tmp_path, STEPS)]
    runs += [runs[0].next()]
    outcome = Outcome(runs, [a_round(1, 0.6), a_round(2, 0.5)], ended_by="round 3 could not be finished")
    said: list[str] = []
    with pytest.raises(StoreError):
        upload(outcome, "eval", said.append)
    for _ in range(2):
        upload(outcome, "eval", said.append)
    assert sent == 2 * [runs[0].model_dir]
    outcome.results = [a_round(1, 0.6, stopped_by=["too long"])]
    outcome.rounds = runs[:1]
    upload(outcome, "eval", said.append)
    assert said[0] == "uploaded: me/x"
    assert said[1:] == ["train.push_to_hub: nothing is uploaded, since a rule stopped every round"]
    assert len(sent) == 2


def test_the_error_of_a_process_is_the_error_of_the_run(tmp_path: Path) -> None:
    path = tmp_path / "failed.json"
    raise_told(path)
    with pytest.raises(TrainingError), told(path):
        raise TrainingError("the loss is nan", key="loss")
    with raises(TrainingError, key="loss", match="the loss is nan"):
        raise_told(path)
