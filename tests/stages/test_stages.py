"""The stages one by one, with the scripted engine."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sao.config import JudgingConfig, PairsConfig, PersonasConfig, PromptsConfig, ResponsesConfig, make_config
from sao.engines import ChoiceRequest, Choices, Completion
from sao.engines.scripted import ScriptedEngine
from sao.errors import ConfigError, DataError
from sao.pipeline.folder import reader
from sao.records import Drop, Judgment, Message, Persona, PreferencePair, Prompt, Response, make_id
from sao.stages.judging import judge, ordered_pairs, read_logprobs, read_ranking
from sao.stages.pairs import Jury, build_pairs
from sao.stages.personas import read_personas
from sao.stages.prompts import read_prompt, write_prompts
from sao.stages.responses import answer_prompts
from sao.templates import fill, load_template


def response(index: int, text: str, row: int = 0) -> Response:
    return Response(
        id=make_id("r", row, index, text),
        row=2 * row + index,
        prompt_id=f"prompt{row}",
        index=index,
        text=text,
        token_ids=None,
        finish_reason="stop",
    )


# Personas


def test_personas_from_jsonl_txt_and_parquet_are_the_same(tmp_path: Path) -> None:
    texts = ["a baker", "a smith", "A  Baker", "a nurse"]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"persona": t}) + "\n" for t in texts))
    (tmp_path / "p.txt").write_text("\n".join(texts) + "\n")
    pyarrow.parquet.write_table(pyarrow.table({"persona": texts}), tmp_path / "p.parquet")
    for name in ("p.jsonl", "p.txt", "p.parquet"):
        config = PersonasConfig(source=str(tmp_path / name), n=2, held_out=1)
        assert [p.text for p in read_personas(config, 0)] == ["a baker", "a smith", "a nurse"]


def test_a_broken_line_is_named_with_file_and_number(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"persona": "a"}\n{"persona": \n')
    with pytest.raises(DataError, match=r"p\.jsonl, line 2: not JSON"):
        list(read_personas(PersonasConfig(source=str(file), n=2, held_out=0), 0))
    file.write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match=r"line 1: no text under the key 'persona' \(it holds: text\)"):
        list(read_personas(PersonasConfig(source=str(file), n=1, held_out=0), 0))


def test_too_few_personas_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\n")
    with pytest.raises(DataError, match="holds 1 distinct personas"):
        list(read_personas(PersonasConfig(source=str(tmp_path / "p.txt"), n=2, held_out=0), 0))


def test_a_file_counts_by_its_content(tmp_path: Path) -> None:
    for name, text in (("a.txt", "x\n"), ("b.txt", "x\n"), ("c.txt", "y\n")):
        (tmp_path / name).write_text(text)
    configs = (make_config({"personas": {"source": str(tmp_path / f"{n}.txt")}}) for n in "abc")
    a, b, c = (reader(config, tmp_path / "run").stage("personas").path for config in configs)
    assert a == b
    assert a != c


def test_a_hub_data_set_needs_its_revision() -> None:
    with pytest.raises(DataError, match="revision"):
        list(read_personas(PersonasConfig(source="some/set", n=1), 0))


def test_built_in_personas_and_nobody() -> None:
    for source in ("builtin:general", "builtin:world"):
        found = list(read_personas(PersonasConfig(source=source, n=1000, held_out=200), 0))
        assert len({p.text.casefold() for p in found}) == 1200
    nobody = list(read_personas(PersonasConfig(source="none", n=3, held_out=1), 0))
    assert [p.text for p in nobody] == [""] * 4
    assert len({p.id for p in nobody}) == 4


# Prompts and responses


@pytest.mark.parametrize(
    ("text", "finish", "expected"),
    [
        ("Prompt: why?", "stop", (["why?"], "")),
        ("  prompt:why? ", "stop", (["why?"], "")),
        ("why?", "stop", ([], "no marker")),
        ("", "stop", ([], "empty")),
        ("Prompt:  ", "stop", ([], "empty")),
        ("Prompt: why", "length", ([], "cut off at max_tokens")),
    ],
)
def test_prompts_are_read_strictly(text: str, finish: str, expected: tuple[list[str], str]) -> None:
    assert read_prompt(Completion("x", text, None, finish), "Prompt:") == expected  # type: ignore[arg-type]


def test_unreadable_prompts_become_drops_and_done_ones_are_skipped() -> None:
    people = [Persona(id=f"p{i}", row=i, text=f"persona {i}") for i in range(4)]
    engine = ScriptedEngine(
        reply=lambda m, seed, s: "Prompt: hi" if "persona 1" not in m[0].content else "hi"
    )
    done = {make_id("key", "p3")}
    out = list(write_prompts(people, engine, PromptsConfig(), "key", done))
    assert [type(r) for r in out] == [Prompt, Drop, Prompt]
    assert isinstance(out[1], Drop)
    assert (out[1].reason, out[1].row, out[1].record_id) == ("no marker", 1, make_id("key", "p1"))


def test_each_answer_has_its_own_seed_and_empty_ones_drop() -> None:
    seeds: list[int] = []

    def reply(messages: tuple[Message, ...], seed: int, sampling: object) -> str:
        seeds.append(seed)
        return "" if len(seeds) == 3 else f"answer {seed}"

    prompts = [
        Prompt(id="a", row=0, persona_id="x", text="hi"),
        Prompt(id="b", row=2, persona_id="y", text="ho"),
    ]
    out = list(answer_prompts(prompts, ScriptedEngine(reply=reply), ResponsesConfig(), "key", set()))
    assert len(set(seeds)) == 4
    assert [r.row for r in out] == [0, 1, 2, 3]
    assert isinstance(out[2], Drop)
    assert out[2].reason == "empty"


# Judging


class FairJudge(ScriptedEngine):
    """Prefers the answer with the greater number in it, wherever it stands."""

    def choice_logprobs(self, requests: Iterator[ChoiceRequest]) -> Iterator[Choices]:  # type: ignore[override]
        for request in requests:
            words = [float(w) for w in request.messages[0].content.split() if w.replace(".", "").isdigit()]
            p = 1 / (1 + math.exp(words[1] - words[0]))
            yield Choices(request.id, (math.log(p), math.log1p(-p)))


@pytest.fixture
def numbers(tmp_path: Path) -> JudgingConfig:
    (tmp_path / "judge.txt").write_text("{prompt} {first} versus {second}")
    return JudgingConfig(template=str(tmp_path / "judge.txt"))


@given(st.floats(0, 20), st.floats(0, 20))
def test_swapping_the_answers_swaps_the_verdict(x: float, y: float) -> None:
    lx, ly = -math.log1p(math.exp(-(x - y))), -math.log1p(math.exp(x - y))
    one, two = read_logprobs(lx, ly, 0.05), read_logprobs(ly, lx, 0.05)
    assert {"first": "second", "second": "first", "tie": "tie"}[one[0] or ""] == two[0]
    assert (one[1] or 0) + (two[1] or 0) == pytest.approx(1)


def test_logprob_verdicts_by_hand() -> None:
    verdict, p, verdict_prob = read_logprobs(math.log(0.6), math.log(0.2), 0.05)
    assert (verdict, p, verdict_prob) == ("first", pytest.approx(0.75), pytest.approx(0.8))
    assert read_logprobs(math.log(0.01), math.log(0.02), 0.05)[0] is None  # too little verdict_prob
    assert read_logprobs(math.nan, -1.0, 0.05) == (None, None, None)
    assert read_logprobs(-math.inf, -math.inf, 0.0) == (None, None, None)
    assert read_logprobs(-1000.0, -1.0, 0.05)[1] == 0.0
    assert read_logprobs(-1.0, -1.0, 0.05)[0] == "tie"


@given(st.text(max_size=30))
def test_no_text_but_a_ranking_line_is_a_verdict(text: str) -> None:
    verdict = read_ranking(text, ("1", "2"))
    assert (verdict is None) == (
        text.strip().replace(" ", "").replace("\t", "") not in ("1>2", "2>1", "1=2", "2=1")
    )


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("1 > 2", "first"),
        (" 2>1\n", "second"),
        ("1 > 1", None),
        ("1 > 2 > 1", None),
        ("1", None),
        ("1 > 2.", None),
        ("1 < 2", None),
        ("1 = 2", "tie"),
        ("1\n> 2", None),
    ],
)
def test_ranking_lines(text: str, verdict: str | None) -> None:
    assert read_ranking(text, ("1", "2")) == verdict


def test_both_orders_judge_each_pair_twice(numbers: JudgingConfig) -> None:
    group = [("prompt0", "q", [response(0, "3"), response(1, "5")])]
    out = list(judge(ordered_pairs(group, 2, "key", 2), FairJudge(), numbers, set()))
    assert [(j.verdict, j.row) for j in out] == [("second", 0), ("first", 1)]
    assert {j.winner_id for j in out} == {response(1, "5").id}
    assert out[0].p_first == pytest.approx(1 - (out[1].p_first or 0))
    assert list(judge(ordered_pairs(group, 2, "key", 2), FairJudge(), numbers, {j.id for j in out})) == []


def test_identical_answers_are_not_judged() -> None:
    assert list(ordered_pairs([("p", "q", [response(0, "same"), response(1, "same")])], 2, "key", 2)) == []


def test_in_one_order_each_slot_comes_first_about_as_often() -> None:
    groups = [(f"prompt{i}", "q", [response(0, "a", i), response(1, "b", i)]) for i in range(1000)]
    firsts = [d.first.index for d in ordered_pairs(groups, 1, "key", 2)]
    assert 440 < sum(firsts) < 560
    assert len({d.row for d in ordered_pairs(groups, 1, "key", 2)}) == 1000


def test_rows_of_three_answers_are_distinct() -> None:
    answers = [replace(response(i, str(i)), row=3 + i) for i in range(3)]
    found = list(ordered_pairs([("p", "q", answers)], 2, "key", 3))
    assert sorted(d.row for d in found) == [6, 7, 8, 9, 10, 11]
    assert [d.first.index for d in found] == [0, 0, 1, 1, 2, 2]  # those that begin alike follow each other


def test_controls() -> None:
    groups = [(f"prompt{i}", "q", [response(0, "a", i), response(1, "b", i)]) for i in range(400)]
    coins = list(judge(ordered_pairs(groups, 2, "k", 2), None, JudgingConfig(method="random"), set()))
    by_prompt: dict[str, set[str | None]] = {}
    for j in coins:
        by_prompt.setdefault(j.prompt_id, set()).add(j.winner_id)
    assert all(len(winners) == 1 for winners in by_prompt.values())  # the coin falls once for a pair
    heads = sum(response(0, "a", i).id in by_prompt[f"prompt{i}"] for i in range(400))
    assert 150 < heads < 250
    worth = {"a": 0.2, "b": 0.9}
    right = list(
        judge(
            ordered_pairs(groups[:1], 2, "k", 2),
            None,
            JudgingConfig(method="oracle"),
            set(),
            lambda p, a: worth[a],
        )
    )
    assert {j.winner_id for j in right} == {response(1, "b", 0).id}


# Pairs


def judgment(first: Response, second: Response, p_first: float | None, verdict: str | None = "") -> Judgment:
    if verdict == "":
        assert p_first is not None
        verdict = "first" if p_first > 0.5 else "second"
    return Judgment(
        id=make_id(first.id, second.id),
        row=0,
        prompt_id="prompt0",
        first_id=first.id,
        second_id=second.id,
        judge="x",
        verdict=verdict,  # type: ignore[arg-type]
        p_first=p_first,
    )


A, B = response(0, "a"), response(1, "b")
ASKED = Prompt(id="prompt0", row=0, persona_id="x", text="q")


PLAIN = Jury(calibrations={}, weights={})


def pair_of(judgments: list[Judgment], **settings: object) -> PreferencePair | Drop:
    """The pair of two answers whose judge is taken at its word."""
    settings = {"min_p": 0.8, **settings}
    (only,) = build_pairs([(ASKED, [A, B], judgments)], PairsConfig(**settings), "key", 2, PLAIN)  # type: ignore[arg-type]
    return only


def test_agreeing_orders_make_a_pair_with_the_mean_log_odds() -> None:
    pair = pair_of([judgment(A, B, 0.9), judgment(B, A, 0.2)])
    assert isinstance(pair, PreferencePair)
    assert (pair.chosen_id, pair.rejected_id) == (A.id, B.id)
    assert pair.margin == pytest.approx((math.log(9) + math.log(4)) / 2)
    assert pair.p_chosen == pytest.approx(1 / (1 + math.exp(-(math.log(9) + math.log(4)) / 2)))


@pytest.mark.parametrize(
    ("judgments", "reason"),
    [
        ([judgment(A, B, 0.9), judgment(B, A, 0.9)], "orders disagree"),
        ([judgment(A, B, 0.6), judgment(B, A, 0.4)], "p too small"),
        ([judgment(A, B, None, None), judgment(B, A, 0.1)], "unreadable verdict"),
        ([judgment(A, B, 0.5, "tie"), judgment(B, A, 0.5, "tie")], "tie"),
        ([], "not judged"),
    ],
)
def test_drops_carry_their_reason(judgments: list[Judgment], reason: str) -> None:
    pair = pair_of(judgments)
    assert isinstance(pair, Drop)
    assert pair.reason == reason


def test_a_dropped_answer_is_accounted_for() -> None:
    (only,) = build_pairs([(ASKED, [B], [])], PairsConfig(), "key", 2, PLAIN)
    assert isinstance(only, Drop)
    assert only.reason == "an answer was dropped"


def test_identical_answers_never_pair() -> None:
    for keep in ("all", "confident"):
        out = list(
            build_pairs([(ASKED, [A, replace(B, text="a")], [])], PairsConfig(keep=keep), "key", 2, PLAIN)
        )  # type: ignore[arg-type]
        assert isinstance(out[0], Drop)
        assert out[0].reason == "identical answers"


@given(st.floats(0.5001, 1), st.floats(0.5001, 1))
def test_a_judge_that_always_says_first_yields_no_pair(p: float, q: float) -> None:
    assert isinstance(pair_of([judgment(A, B, p), judgment(B, A, q)]), Drop)


@given(st.floats(0, 1), st.floats(0, 1))
def test_naming_the_answers_the_other_way_changes_nothing(p: float, q: float) -> None:
    one = pair_of([judgment(A, B, p), judgment(B, A, q)], min_p=0.5)
    two = pair_of([judgment(B, A, q), judgment(A, B, p)], min_p=0.5)
    assert one == two


def test_the_papers_way_keeps_a_single_text_verdict() -> None:
    pair = pair_of([judgment(A, B, None, "second")], keep="all")
    assert isinstance(pair, PreferencePair)
    assert (pair.chosen_id, pair.margin) == (B.id, None)
    unreadable = pair_of([judgment(A, B, None, None)], keep="all")
    assert isinstance(unreadable, Drop)
    tie = pair_of([judgment(A, B, None, "first"), judgment(B, A, None, "first")], keep="all")
    assert isinstance(tie, Drop)
    assert tie.reason == "tie"


# Templates


def test_braces_in_values_are_text() -> None:
    assert (
        fill("{prompt} | {first}", prompt="{first} {0} {}", first="{prompt}") == "{first} {0} {} | {prompt}"
    )


def test_a_template_without_its_field_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("nothing")
    with pytest.raises(ConfigError, match=r"\{persona\} does not stand in it"):
        load_template(str(tmp_path / "t.txt"), ("persona",))
    with pytest.raises(ConfigError, match="no template"):
        load_template("nowhere", ())
