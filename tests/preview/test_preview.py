"""A look before a run: planted faults are seen, the rules name them, and the recipe that is written runs."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import sao.checks
import sao.preview
import sao.preview.budget
import sao.preview.gold
import sao.preview.verdicts
import sao.preview.ways
import sao.store.stage
from sao.cli import main
from sao.config import Config, load_recipe, make_config, recipe_names
from sao.engines import Completion, Request, Sampling
from sao.engines.scripted import ScriptedEngine, read_answers
from sao.errors import ConfigError, EngineError, StoreError
from sao.method import run
from sao.preview import preview
from sao.preview.budget import Found, Pace
from sao.preview.figures import judge_figures
from sao.preview.look import Pair
from sao.preview.meter import Notebook
from sao.records import Judgment, Message
from sao.report.preview import show_preview
from sao.results import Preview
from sao.results.preview import JudgeWay
from support import planted, tiny_models
from support.errors import raises
from support.run_files import files


@pytest.fixture(autouse=True)
def _one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted answers differ in their length alone."""
    monkeypatch.setattr(sao.checks, "TRAINED", ("max_words",))


PEOPLE = {"source": "builtin:general", "n": 40, "held_out": 0}


@dataclass
class Planted(ScriptedEngine):
    """A model that forgets the marker unless its reply begins with it, and whose answers are `cut`."""

    forgets: bool = False
    cut: bool = False
    writes_as_user: bool = True

    def generate(self, requests: Iterable[Any]) -> Iterator[Completion]:
        for request in requests:
            for sample in request.samples:
                self.calls += 1
                yield self._completion(request, sample.id, sample.seed)

    def _completion(self, request: Request, id_: str, seed: int) -> Completion:
        if request.as_user:
            text = f"What should I know about number {seed}?" if self.writes_as_user else ""
            return Completion(id_, text, None, "stop")
        text = self.reply(request.messages, seed, request.sampling)
        is_prompt = text.startswith("Prompt:")
        if is_prompt and self.forgets:
            text = f"Sure! I would ask about {seed}."
        reason = "length" if self.cut and not is_prompt else "stop"
        return Completion(id_, text.removeprefix(request.prefill), None, reason)  # type: ignore[arg-type]


def words_reply(messages: tuple[Message, ...], seed: int, sampling: Sampling) -> str:
    """Prompts about a number, and answers of 1 to 100 words."""
    if "person" in messages[-1].content.lower() and "Prompt:" in messages[-1].content:
        return f"Prompt: explain the number {seed} to me."
    return " ".join(f"w{seed % 997}x{k}" for k in range(1 + seed % 100))


def recipe(**sections: object) -> Config:
    return make_config({"model": "planted", "engine": {"name": "scripted"}, "personas": PEOPLE, **sections})


def look(engine: ScriptedEngine, folder: Path, config: Config | None = None) -> Preview:
    return preview(config or recipe(), folder, engine=engine, minutes=0.2)


def rules(found: Preview) -> set[str]:
    return {change.rule for change in found.changes}


def settings(found: Preview) -> dict[str, str]:
    return {key: value for change in found.changes for key, value in change.settings.items()}


def judge(p_first: Callable[[str, str], float]) -> planted.Choose:
    """A judge of two answers to whom one answer alone says nothing."""
    of_two = planted.judge(p_first)
    return lambda messages, words: of_two(messages, words) if read_answers(messages) else (-0.7, -0.7)


def fair() -> planted.Choose:
    return judge(lambda first, second: 0.99 if len(first.split()) < len(second.split()) else 0.01)


def test_a_model_that_does_all_well_needs_no_change(tmp_path: Path) -> None:
    found = look(Planted(reply=words_reply, choose=fair()), tmp_path)
    assert found.changes == []
    assert {way.name: (way.usable, way.asked) for way in found.prompts} == {
        "instruct": (16, 16),
        "instruct, prefill": (16, 16),
        "user_turn": (16, 16),
    }
    assert [way.name for way in found.prompts if way.is_recipe] == ["instruct"]
    own = found.judging[0]
    assert own.is_recipe and own.mass == pytest.approx(1) and own.first_slot == pytest.approx(0.5)
    assert own.flips == 0
    # At most n words are asked for, and this judge takes the shorter answer.
    assert found.gold is not None and found.gold.source == "constraints"
    assert own.accuracy is not None and own.accuracy.rate == 1 and own.accuracy.n == found.gold.pairs
    assert load_recipe(str(found.recipe)) == recipe()


def test_a_model_that_forgets_the_marker_writes_as_the_user(tmp_path: Path) -> None:
    found = look(Planted(reply=words_reply, choose=fair(), forgets=True), tmp_path)
    own = next(way for way in found.prompts if way.is_recipe)
    assert own.usable == 0
    assert own.reasons == {"no marker": own.asked}
    assert own.texts[0].reason == "no marker" and own.texts[0].text.startswith("Sure!")
    change = next(change for change in found.changes if change.rule == "prompt method")
    assert f"against 0 of {own.asked}" in change.says
    assert settings(found)["prompts.method"] == "user_turn"
    text = show_preview(found)
    assert change.says.split(":")[0] in text
    assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 100


def test_the_recipe_with_the_changes_loads_and_runs(tmp_path: Path) -> None:
    engine = Planted(reply=words_reply, choose=fair(), forgets=True)
    found = look(engine, tmp_path / "look")
    written = load_recipe(str(found.recipe))
    assert written == recipe(prompts={"method": "user_turn"})
    summary = run(written, tmp_path / "run", until="pairs", engine=engine)
    counts = {row.stage: row.records for row in summary.funnel}
    assert counts["prompts"] == 40 and counts["pairs"] > 0


def test_a_judge_of_the_first_slot_is_worth_nothing(tmp_path: Path) -> None:
    engine = Planted(reply=words_reply, choose=judge(planted.always_first))
    found = look(engine, tmp_path)
    assert {"one slot", "chance"} <= rules(found)
    change = next(change for change in found.changes if change.rule == "one slot")
    assert "position decides, not the answer: this judge is worth nothing yet" in change.says
    own = found.judging[0]
    assert own.first_slot == 1 and own.flips == 1
    assert own.accuracy is not None and own.accuracy.rate == 0.5


def test_answers_that_are_cut_get_a_system_message(tmp_path: Path) -> None:
    found = look(Planted(reply=words_reply, choose=fair(), cut=True), tmp_path)
    assert found.answers is not None and found.answers.cut == found.answers.asked
    assert "cut answers" in rules(found)
    assert "short paragraph" in settings(found)["responses.system"]
    # Nothing could be sampled, so pairs are made up.
    assert found.gold is not None and found.gold.source == "made up" and found.gold.differing == 0
    assert "made up" in show_preview(found)


def test_longer_answers_where_there_is_a_system_message(tmp_path: Path) -> None:
    config = recipe(responses={"system": "Be brief.", "max_tokens": 90})
    found = look(Planted(reply=words_reply, choose=fair(), cut=True), tmp_path, config)
    assert settings(found)["responses.max_tokens"] == "180"


def test_a_beginning_of_the_reply_gives_the_verdict_its_mass(tmp_path: Path) -> None:
    found = look(_judge_that_needs("The best answer is number "), tmp_path)
    assert settings(found)["judging.prefill"] == "The best answer is number "
    assert found.judging[0].mass == pytest.approx(0.1)
    assert load_recipe(str(found.recipe)).judging.prefill == "The best answer is number "


def _judge_that_needs(prefill: str) -> ScriptedEngine:
    """A judge whose verdict words have mass 0.1 unless its reply begins with `prefill`."""
    sure = fair()

    @dataclass
    class Needing(Planted):
        def choice_logprobs(self, requests):  # type: ignore[no-untyped-def]
            for request in requests:
                mass = 0.0 if request.prefill == prefill else -2.302585
                self.choose = lambda m, c, mass=mass: tuple(p + mass for p in sure(m, c))  # type: ignore[misc]
                yield from super().choice_logprobs([request])

    return Needing(reply=words_reply)


def test_a_model_that_says_the_same_each_time(tmp_path: Path) -> None:
    def reply(messages: tuple[Message, ...], seed: int, sampling: Sampling) -> str:
        is_prompt = "Prompt:" in messages[-1].content
        return "Prompt: what is the time now?" if is_prompt else "so " * 40

    found = look(Planted(reply=reply, choose=fair(), writes_as_user=False), tmp_path)
    assert {"same prompts", "same answers", "looping answers", "few prompts"} <= rules(found)
    assert settings(found)["prompts.temperature"] == "0.9"


def test_a_model_without_any_usable_prompt(tmp_path: Path) -> None:
    engine = Planted(reply=lambda *_: "", choose=fair(), writes_as_user=False)
    found = look(engine, tmp_path)
    assert found.best is None and found.answers is None
    assert found.gold is not None and found.gold.source == "made up"
    assert "few prompts" in rules(found)
    assert "not known" in show_preview(found)


def test_an_engine_that_cannot_begin_a_turn(tmp_path: Path) -> None:
    engine = Planted(reply=words_reply, choose=fair())
    engine.has_prefill = False
    found = look(engine, tmp_path)
    skipped = {way.name for way in found.prompts if way.skipped}
    assert skipped == {"instruct, prefill", "user_turn"}
    assert "not tried" in show_preview(found)


def test_the_same_call_again_asks_nobody(tmp_path: Path) -> None:
    engine = Planted(reply=words_reply, choose=fair())
    first = look(engine, tmp_path)
    before, calls = files(tmp_path), engine.calls
    again = look(engine, tmp_path)
    assert engine.calls == calls
    assert files(tmp_path) == before
    same = {"seconds": 0.0, "loading": 0.0}
    assert again.model_copy(update=same) == first.model_copy(update=same)


def test_what_was_lost_is_made_again(tmp_path: Path) -> None:
    engine = Planted(reply=words_reply, choose=fair())
    look(engine, tmp_path)
    before = files(tmp_path)
    stage = next((tmp_path / "preview").glob("verdicts-*"))
    lines = (stage / "records.jsonl").read_text().splitlines(keepends=True)
    (stage / "part-a-1-a.jsonl").write_text("".join(lines[:3]))
    for name in ("records.jsonl", "drops.jsonl"):
        (stage / name).unlink()
    look(engine, tmp_path)
    assert files(tmp_path) == before


def test_a_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    look(Planted(reply=words_reply, choose=fair()), tmp_path)
    with raises(StoreError, key="run folder"):
        look(Planted(identity="other", reply=words_reply, choose=fair()), tmp_path)


def test_given_pairs_have_nothing_to_look_at(tmp_path: Path) -> None:
    config = recipe(pairs={"source": "pairs.jsonl"})
    with raises(ConfigError, key="pairs.source"):
        preview(config, tmp_path, engine=ScriptedEngine())


def test_a_control_as_judge_is_passed_over(tmp_path: Path) -> None:
    config = recipe(judging={"method": "random"}, personas={**PEOPLE, "source": "self"})
    found = look(Planted(reply=words_reply, choose=fair()), tmp_path, config)
    assert "random" in str(found.judging[0].skipped)
    assert found.judging[1].verdicts > 0
    assert "written by the model" in found.notes[0]


@pytest.mark.parametrize("name", sorted(recipe_names()))
def test_every_shipped_recipe_can_be_looked_at(name: str) -> None:
    small, _ = sao.preview.small_recipe(load_recipe(name))
    assert small.rounds.n == 1 and small.personas.held_out == 0


def test_flipped_verdicts_stay_as_they_are_given(tmp_path: Path) -> None:
    flipped = recipe(judging={"method": "checks", "flipped": 0.4}, prompts={"checkable": 1.0})
    as_given = look(Planted(reply=words_reply, choose=fair()), tmp_path / "a")
    found = look(Planted(reply=words_reply, choose=fair()), tmp_path / "b", flipped)
    assert [way.accuracy for way in found.judging] == [way.accuracy for way in as_given.judging]


def test_a_way_whose_words_the_template_lacks_is_not_tried(tmp_path: Path) -> None:
    template = tmp_path / "letters.txt"
    template.write_text("{prompt} A: {first} B: {second} Say A or B.", encoding="utf-8")
    config = recipe(judging={"template": str(template), "choices": ["A", "B"]})
    found = look(Planted(reply=words_reply, choose=fair()), tmp_path / "look", config)
    skipped = {way.name: way.skipped for way in found.judging if way.skipped is not None}
    assert "judging.choices" in skipped["prefill"] and "first or second" in skipped
    assert found.judging[0].skipped is None


def test_ways_are_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = (*sao.preview.ways.JUDGE_WAYS, ("letters", {"judging.choices": "[A, B]"}))
    monkeypatch.setattr(sao.preview.ways, "JUDGE_WAYS", ways)
    found = look(Planted(reply=words_reply, choose=fair()), tmp_path)
    assert [way.name for way in found.judging][-1] == "letters"


def test_a_base_model_without_a_chat_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Path(tiny_models.llama(tmp_path / "base"))
    (model / "chat_template.jinja").unlink()
    assert main(["preview", str(model), "--out", str(tmp_path / "look"), "--quiet", "--json"]) == 1
    out = capsys.readouterr().out.splitlines()
    found = json.loads(out[-1])
    assert [change["rule"] for change in found["changes"]] == ["no chat template"]
    assert any("instruct version" in line for line in out)


@pytest.mark.slow
def test_the_toy_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe_file = tmp_path / "mine.yaml"
    command = [
        "preview",
        "demo",
        "--minutes",
        "0.5",
        "--out",
        str(tmp_path / "look"),
        "--write",
        str(recipe_file),
    ]
    assert main([*command, "--quiet", "--json"]) == 0
    found = Preview.model_validate_json(capsys.readouterr().out.splitlines()[-1])
    assert found.gold is not None and found.gold.source == "oracle"
    assert found.gold.pairs >= 50
    own = found.judging[0]
    assert own.accuracy is not None and (own.accuracy.rate or 0) > 0.6
    assert found.run.seconds is not None and found.run.seconds > 0
    assert [stage.name for stage in found.run.stages] == [
        "prompts", "responses", "verdicts", "training", "held-out answers", "held-out verdicts",
    ]  # fmt: skip
    small = ["--personas.n", "20", "--personas.held_out", "0", "--out", str(tmp_path / "run"), "--quiet"]
    assert main(["pairs", str(recipe_file), *small]) == 0


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf"])
def test_the_minutes_are_above_zero_and_not_endless(capsys: pytest.CaptureFixture[str], minutes: str) -> None:
    assert main(["preview", "demo", f"--minutes={minutes}"]) == 1
    assert "--minutes" in capsys.readouterr().err


def test_a_preview_reads_back(tmp_path: Path) -> None:
    found = look(Planted(reply=words_reply, choose=fair()), tmp_path)
    assert Preview.model_validate_json(found.model_dump_json()) == found


def test_prompts_with_constraints_keep_the_form_of_their_answers_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systems: set[str] = set()
    sources: set[tuple[str | None, str]] = set()

    def reply(messages: tuple[Message, ...], seed: int, sampling: Sampling) -> str:
        systems.update(message.content for message in messages if message.role == "system")
        return words_reply(messages, seed, sampling)

    def figures(way: JudgeWay, pairs: Sequence[Pair], said: Iterable[Judgment], ways: int) -> JudgeWay:
        sources.update((pair.source, pair.prompt.id) for pair in pairs if pair.better is not None)
        return judge_figures(way, pairs, said, ways)

    monkeypatch.setattr(sao.preview.verdicts, "judge_figures", figures)
    found = look(Planted(reply=reply, choose=fair()), tmp_path)
    assert found.gold is not None and found.gold.source == "constraints"
    assert "Answer briefly, and do all that is asked." in systems
    assert not any("lists" in system for system in systems)
    # Several pairs come from one of the 16 prompts.
    assert None not in dict(sources) and len(dict(sources)) <= 16


def test_fifty_pairs_are_judged_where_the_time_allows_it(tmp_path: Path) -> None:
    found = look(Planted(reply=words_reply, choose=fair()), tmp_path)
    assert found.gold is not None and found.gold.prompts > 24
    assert [way.accuracy is not None and way.accuracy.n >= 50 for way in found.judging] == [True] * 4


def _few_for_all(monkeypatch: pytest.MonkeyPatch, pairs: int, catch_up: bool = True) -> None:
    """All ways judge so many pairs first; the time suffices for all pairs, or for those of the best ways."""
    monkeypatch.setattr(sao.preview.budget, "judged_by_all", lambda pace, of: pairs)
    monkeypatch.setattr(
        sao.preview.budget,
        "judged_by_best",
        lambda pace, of, first: of if catch_up or pace.ways == 2 else first,
    )


def test_where_the_time_is_short_the_best_other_way_alone_sees_as_many_pairs_as_the_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _few_for_all(monkeypatch, 12, catch_up=False)
    engine = _judge_that_needs("The best answer is number ")
    found = look(engine, tmp_path)
    pairs = {way.name: way.pairs for way in found.judging}
    assert pairs["first or second"] == pairs["one answer at a time"] == 12
    assert pairs["the recipe's"] == pairs["prefill"] > 50
    assert "All ways judged the first 12 pairs" in " ".join(show_preview(found).split())
    spent = {step.name: step.items for step in found.spent}
    assert spent["verdicts, prefill"] == 2 * pairs["prefill"]
    before, calls = files(tmp_path), engine.calls
    assert look(engine, tmp_path).judging == found.judging
    assert (files(tmp_path), engine.calls) == (before, calls)


def test_where_time_is_left_the_other_ways_catch_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = look(Planted(reply=words_reply, choose=fair()), tmp_path / "at once")
    _few_for_all(monkeypatch, 12)
    found = look(Planted(reply=words_reply, choose=fair()), tmp_path / "by and by")
    assert found.judging == at_once.judging
    assert found.judging[0].pairs > 50
    assert "All ways judged the first" not in show_preview(found)


def test_more_pairs_are_made_where_time_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _few_for_all(monkeypatch, 8)
    monkeypatch.setattr(sao.preview.budget, "CHECKED_PROMPTS", (12, 12))
    turns = iter([0, 4, 3, 0])
    judged = []

    def more(pace: Pace, plain: int, found: Found, took: float) -> int:
        judged.append(found.judged)
        return next(turns)

    monkeypatch.setattr(sao.preview.gold, "more_prompts", more)
    engine = Planted(reply=words_reply, choose=fair())
    found = look(engine, tmp_path)
    assert found.gold is not None and found.gold.prompts == 12 + 4 + 3
    own = found.judging[0]
    assert own.accuracy is not None
    assert own.accuracy.n == found.gold.pairs == judged[3] > judged[2] > judged[1] > judged[0] == 0
    says = f"{found.gold.again} of the {found.gold.pairs} pairs share an answer with an earlier one."
    assert found.gold.again > 0 and says in " ".join(show_preview(found).split())
    before, calls = files(tmp_path), engine.calls
    assert look(engine, tmp_path).judging == found.judging
    assert (files(tmp_path), engine.calls) == (before, calls)


def test_fifty_pairs_suffice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sao.preview.budget, "CHECKED_PROMPTS", (40, 40))
    monkeypatch.setattr(sao.preview.gold, "more_prompts", lambda *_: 0)
    found = look(Planted(reply=words_reply, choose=fair()), tmp_path)
    assert found.gold is not None and found.gold.again > 0
    assert found.gold.pairs == 50


def test_no_more_than_fifty_pairs_are_made_by_and_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _few_for_all(monkeypatch, 8)
    monkeypatch.setattr(sao.preview.budget, "CHECKED_PROMPTS", (12, 12))
    monkeypatch.setattr(
        sao.preview.gold, "more_prompts", lambda pace, plain, found, took: 40 * bool(found.judged)
    )
    found = look(Planted(reply=words_reply, choose=fair()), tmp_path)
    assert found.gold is not None and (found.gold.prompts, found.gold.pairs) == (52, 50)


def test_made_up_pairs_are_not_mixed_with_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _few_for_all(monkeypatch, 8)
    monkeypatch.setattr(sao.preview.gold, "LEAST", 40)
    monkeypatch.setattr(
        sao.preview.gold, "more_prompts", lambda pace, plain, found, took: 9 * bool(found.judged)
    )
    found = look(Planted(reply=words_reply, choose=fair()), tmp_path)
    assert found.gold is not None and (found.gold.source, found.gold.pairs) == ("made up", 20)


def test_no_more_pairs_where_another_model_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would have to be loaded again."""
    _few_for_all(monkeypatch, 8)
    monkeypatch.setattr(sao.preview.budget, "CHECKED_PROMPTS", (12, 12))
    turns = 0

    def more(pace: Pace, plain: int, found: Found, took: float) -> int:
        nonlocal turns
        turns += 1
        return 0

    monkeypatch.setattr(sao.preview.gold, "more_prompts", more)
    other = recipe(judging={"engine": {"name": "scripted", "model": "another"}})
    look(Planted(reply=words_reply, choose=fair()), tmp_path / "other", other)
    assert turns == 1
    look(Planted(reply=words_reply, choose=fair()), tmp_path / "same")
    assert turns == 3


def test_the_pace_is_of_verdicts_not_of_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two wordings are two requests for a verdict."""
    seen: dict[str, list[float]] = {}

    def paces(name: str, **judging: object) -> None:
        def judged_by_best(pace: Pace, of: int, first: int) -> int:
            seen.setdefault(name, []).append(pace.each)
            return of

        monkeypatch.setattr(sao.preview.budget, "judged_by_best", judged_by_best)
        look(Planted(reply=words_reply, choose=fair()), tmp_path / name, recipe(judging=judging))

    monkeypatch.setattr(sao.preview.budget, "judged_by_all", lambda pace, of: 12)
    monkeypatch.setattr(Notebook, "seconds", lambda self, step: 0.01 * self.steps[step]["items"])
    paces("one")
    paces("two", wordings=["judge", "judge_short"])
    assert seen["one"][0] == pytest.approx(0.01)
    assert seen["two"][0] == pytest.approx((0.02 + 0.01) / 2)


@dataclass
class KeepsPrefixes(Planted):
    """An engine that reads only once how two requests begin."""

    keeps_prefixes: bool = True


def test_ways_to_judge_take_turns_where_that_saves_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _few_for_all(monkeypatch, 8, catch_up=False)

    def asked_later(kind: type[Planted]) -> list[str]:
        asked: list[str] = []
        of_both = fair()

        def choose(messages: tuple[Message, ...], words: tuple[str, ...]) -> tuple[float, ...]:
            asked.append(messages[-1].content)
            return of_both(messages, words)

        found = look(kind(reply=words_reply, choose=choose), tmp_path / kind.__name__)
        return asked[-2 * 2 * (found.judging[0].pairs - 8) :]

    later = asked_later(KeepsPrefixes)
    assert len(later) > 3 * 16
    assert later[:8] == later[8:16] != later[16:24] == later[24:32]
    later = asked_later(Planted)
    assert later[: len(later) // 2] == later[len(later) // 2 :]


def test_a_look_that_breaks_off_while_ways_take_turns_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _few_for_all(monkeypatch, 8, catch_up=False)
    monkeypatch.setattr(sao.preview.budget, "CHECKED_PROMPTS", (12, 12))
    monkeypatch.setattr(sao.preview.gold, "more_prompts", lambda *_: 0)
    monkeypatch.setattr(sao.store.stage, "FLUSH_ROWS", 1)
    of_both, asked = fair(), 0

    def choose(messages: tuple[Message, ...], words: tuple[str, ...]) -> tuple[float, ...]:
        nonlocal asked
        asked += 1
        if asked in breaks:
            raise RuntimeError("the power has gone")
        return of_both(messages, words)

    def tried(folder: str) -> Preview:
        return look(KeepsPrefixes(reply=words_reply, choose=choose), tmp_path / folder)

    breaks: set[int] = set()
    whole = tried("whole")
    breaks = {2 * asked - 3, 2 * asked - 12}
    for _ in breaks:
        with pytest.raises(RuntimeError):
            tried("broken")
    found = tried("broken")
    assert (found.judging, found.gold, found.notes) == (whole.judging, whole.gold, whole.notes)


def test_a_way_that_fails_on_more_pairs_keeps_its_first_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _few_for_all(monkeypatch, 12, catch_up=False)
    asked = 0
    of_both = fair()

    def choose(messages: tuple[Message, ...], words: tuple[str, ...]) -> tuple[float, ...]:
        nonlocal asked
        asked += words == ("1", "2")
        if asked > 2 * 2 + 2 * 2 * 12:  # two pairs for the speed, and the first pairs by two ways
            raise EngineError("the judge has gone")
        return of_both(messages, words)

    found = look(Planted(reply=words_reply, choose=choose), tmp_path)
    assert [way.pairs for way in found.judging if way.skipped is None] == [12] * 4
    assert found.notes.count("By the recipe's only the first 12 pairs were judged: the judge has gone") == 1
    assert "the judge has gone" in " ".join(show_preview(found).split())


def test_a_model_that_fails_while_more_pairs_are_made_loses_no_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _few_for_all(monkeypatch, 8)
    monkeypatch.setattr(sao.preview.budget, "CHECKED_PROMPTS", (12, 12))
    gone = False

    def more(pace: Pace, plain: int, found: Found, took: float) -> int:
        nonlocal gone
        gone = found.judged > 0
        return 4 * gone

    def reply(messages: tuple[Message, ...], seed: int, sampling: Sampling) -> str:
        if gone:
            raise EngineError("the model has gone")
        return words_reply(messages, seed, sampling)

    monkeypatch.setattr(sao.preview.gold, "more_prompts", more)
    found = look(Planted(reply=reply, choose=fair()), tmp_path)
    assert found.gold is not None and found.gold.prompts == 12
    n = found.judging[0].pairs
    assert n >= found.gold.pairs > 8
    assert f"By the recipe's only the first {n} pairs were judged: the model has gone" in found.notes


def test_unread_verdicts_are_told(tmp_path: Path) -> None:
    engine = Planted(reply=words_reply, choose=lambda messages, words: (-9.0, -9.0))
    found = look(engine, tmp_path)
    own = found.judging[0]
    assert own.verdicts == 0 and own.accuracy is not None and own.accuracy.rate == 0.5
    assert found.gold is not None and own.accuracy.n == found.gold.pairs
    assert "counts as half right" in found.notes[-1]
    assert "counts as half right" in " ".join(show_preview(found).split())
    assert "chance" not in rules(found)
