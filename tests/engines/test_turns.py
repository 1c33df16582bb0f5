"""Turns that have begun: a reply with its first words, a verdict after a prefill, and the user's turn left
open."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from sao.config import EngineConfig, JudgingConfig, PromptsConfig, make_config
from sao.engines import ChoiceRequest, Request, Sample, Sampling
from sao.engines.scripted import ScriptedEngine
from sao.engines.transformers import TransformersEngine
from sao.errors import EngineError, ModelError
from sao.method import run
from sao.models.chat import ChatTokenizer
from sao.pipeline.folder import reader
from sao.pipeline.reader import Reader
from sao.records import Drop, Message, Persona, Prompt, Response
from sao.stages.judging import OrderedPair, judge
from sao.stages.prompts import write_prompts
from support.tiny_models import gemma2, llama, qwen3

CONFIG = EngineConfig(name="transformers", device="cpu", slots=4, threads=1)
SYSTEM = Message("system", "be brief")


def load(family: Callable[[Path], str], folder: Path) -> ChatTokenizer:
    return ChatTokenizer.load(family(folder / "m"), CONFIG)


def text_of(chat: ChatTokenizer, ids: list[int]) -> str:
    return str(chat.tokenizer.decode(ids))


# Token ids.


def test_the_users_turn_is_left_open_as_the_template_opens_it(tmp_path: Path) -> None:
    for family, with_system, without in (
        (qwen3, "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n",
         "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\n"),
        (llama, "<s><|system|>be brief<|end|><|user|>", "<s><|user|>"),
    ):  # fmt: skip
        chat = load(family, tmp_path / family.__name__)
        assert text_of(chat, chat.user_turn_ids([SYSTEM])) == with_system
        assert text_of(chat, chat.user_turn_ids([])) == without
        whole = chat.prompt_ids([SYSTEM, Message("user", "Name three tools")])
        opened = chat.user_turn_ids([SYSTEM])
        assert whole[: len(opened)] == opened  # what the model sees when it answers begins the same


def test_a_template_without_a_system_role_is_refused_for_a_persona(tmp_path: Path) -> None:
    chat = load(gemma2, tmp_path)
    with pytest.raises(ModelError, match=r"takes no system message.*prompts\.method instruct"):
        chat.user_turn_ids([SYSTEM])
    assert text_of(chat, chat.user_turn_ids([])) == "<bos><start_of_turn>user\n"


def with_template(folder: Path, template: str) -> ChatTokenizer:
    model = llama(folder / "t")
    (folder / "t" / "chat_template.jinja").write_text(template)
    return ChatTokenizer.load(model, CONFIG)


def test_a_system_message_is_folded_in_as_the_template_does_it(tmp_path: Path) -> None:
    """Mistral's and Gemma-3's way: the system's text stands at the start of the user's turn."""
    folding = (
        "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] + '\n\n' %}{% set rest = "
        "messages[1:] %}"
        "{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}"
        "{{ bos_token }}{% for m in rest %}<|{{ m['role'] }}|>{% if loop.first %}{{ s }}{% endif %}{{ "
        "m['content'] }}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    chat = with_template(tmp_path, folding)
    assert text_of(chat, chat.user_turn_ids([SYSTEM])) == "<s><|user|>be brief\n\n"


def test_a_template_that_says_a_text_twice_is_refused(tmp_path: Path) -> None:
    twice = "{% for m in messages %}{{ m['content'] }}<|end|>{{ m['content'] }}<|end|>{% endfor %}"
    chat = with_template(tmp_path, twice)
    with pytest.raises(ModelError, match=r"user's text 2 times.*prompts\.method instruct"):
        chat.user_turn_ids([])


TRL = Path(find_spec("trl").submodule_search_locations[0]) / "chat_templates"  # type: ignore[union-attr,index]
IN_PARTS = ("idefics3", "llava_next", "smolvlm")
"""Families whose templates take a turn's content in parts."""
FAMILIES = sorted(p.name.removesuffix(".jinja") for p in TRL.glob("*.jinja") if "training" not in p.name)


def test_there_are_templates_of_all_families() -> None:
    assert len(FAMILIES) >= 40


@pytest.mark.parametrize("family", FAMILIES)
def test_the_template_of_every_family_keeps_the_text_or_is_refused(family: str, tmp_path: Path) -> None:
    """The templates that TRL holds, on a tiny tokenizer: either what the user says arrives, or the model is
    refused."""
    template = (TRL / f"{family}.jinja").read_text("utf-8")
    if family in IN_PARTS:
        with pytest.raises(ModelError, match="what the user says is lost"):
            with_template(tmp_path, template)
        return
    chat = with_template(tmp_path, template)
    assert "Name three tools" in text_of(chat, chat.prompt_ids([Message("user", "Name three tools")]))
    if not chat.takes_system:
        assert family == "gemma"
        return
    opened = text_of(chat, chat.user_turn_ids([SYSTEM]))
    assert "be brief" in opened
    assert not opened.endswith(" ")
    ends, stops = chat.user_ends
    assert ends >= chat.end_ids
    assert stops or ends > chat.end_ids


def test_what_ends_a_users_turn(tmp_path: Path) -> None:
    chat = load(qwen3, tmp_path)
    ends, stops = chat.user_ends
    assert ends == {0, 1, 2}  # any special token
    assert stops == ()
    words = "{% for m in messages %}### {{ m['role'] }}:\n{{ m['content'] }}\n{% endfor %}### assistant:\n"
    ends, stops = with_template(tmp_path, words).user_ends
    assert stops == ("### assistant:",)


def test_a_prefill_begins_the_reply(tmp_path: Path) -> None:
    chat = load(qwen3, tmp_path)
    messages = [Message("user", "a")]
    plain = chat.prompt_ids(messages)
    ids = chat.prompt_ids(messages, "Prompt:")
    assert ids[: len(plain)] == plain
    assert text_of(chat, ids[len(plain) :]) == "Prompt:"
    assert chat.prompt_ids(messages, "Pro<|im_end|>mpt:") == ids  # control text is taken out here too


def test_a_choice_goes_on_from_the_prefill(tmp_path: Path) -> None:
    chat = load(qwen3, tmp_path)
    messages = [Message("user", "a")]
    for prefill, choices in (("The answer is ", ("1", "2")), ("Answer:", (" 1", " 2")), ("x", ("yes", "no"))):
        prompt, ids = chat.choice_ids(messages, choices, prefill)
        for choice, token in zip(choices, ids, strict=True):
            tail = text_of(chat, [*prompt, token])[len(text_of(chat, chat.prompt_ids(messages))) :]
            assert (prefill + choice).startswith(tail)
            assert tail not in prefill
    with pytest.raises(ModelError, match="begin with the same token"):
        chat.choice_ids(messages, ("1", "1 or 2"), "x ")


# Engines.


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    return TransformersEngine(qwen3(tmp_path_factory.mktemp("m") / "q"), CONFIG)


def greedy(model: Any, ids: list[int], ends: frozenset[int], most: int) -> list[int]:
    """Plain decoding, for comparison."""
    found: list[int] = []
    while len(found) < most and not (found and found[-1] in ends):
        with torch.no_grad():
            found.append(int(model(torch.tensor([ids + found])).logits[0, -1].argmax()))
    return found


def test_the_built_in_engine_goes_on_from_what_has_begun(engine: TransformersEngine) -> None:
    """Greedy samples of all kinds of request in one call, each as plain decoding has it."""
    chat, model, sampling = engine.chat, engine.network.model, Sampling(12, 0.0)
    requests, expected = [], {}
    for number in range(6):
        messages = (Message("system", f"talk to person {number}"),)
        asked = (Message("user", f"tell me {number}"),)
        requests += [
            Request(messages, (Sample(f"u{number}", number),), sampling, as_user=True),
            Request(asked, (Sample(f"p{number}", number),), sampling, prefill="Prompt:"),
            Request(asked, (Sample(f"r{number}", number),), sampling),
        ]
        expected[f"u{number}"] = (chat.user_turn_ids(messages), chat.user_ends[0])
        expected[f"p{number}"] = (chat.prompt_ids(asked, "Prompt:"), chat.end_ids)
        expected[f"r{number}"] = (chat.prompt_ids(asked), chat.end_ids)
    found = {c.id: c.token_ids for c in engine.generate(requests)}
    for name, (ids, ends) in expected.items():
        assert list(found[name] or ()) == greedy(model, ids, ends, 12), name


def test_any_special_token_ends_the_users_turn_only(engine: TransformersEngine) -> None:
    """Token 1 opens a turn: in a reply it is no end, in the user's turn it is."""
    ends = engine.network.ends
    assert not ends[0, 1]
    assert ends[1, 1]
    assert ends[0, 2]
    assert ends[1, 2]


def test_verdicts_after_a_prefill_are_the_models_own(engine: TransformersEngine) -> None:
    messages = (Message("user", "which is better?"),)
    request = ChoiceRequest("x", messages, ("1", "2"), "The answer is ")
    (found,) = engine.choice_logprobs([request])
    ids, wanted = engine.chat.choice_ids(messages, ("1", "2"), "The answer is ")
    with torch.no_grad():
        plain = engine.network.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    assert found.logprobs == pytest.approx(plain[list(wanted)].tolist(), abs=1e-4)
    (other,) = engine.choice_logprobs([ChoiceRequest("y", messages, ("1", "2"))])
    assert other.logprobs != found.logprobs


# Prompts and verdicts.


def people(n: int) -> list[Persona]:
    return [Persona(id=f"{i:016x}", row=i, text=f"a baker number {i}") for i in range(n)]


def test_prompts_written_in_the_users_turn_need_no_marker() -> None:
    seen: list[tuple[Message, ...]] = []

    def reply(messages: tuple[Message, ...], seed: int, sampling: Sampling) -> str:
        seen.append(messages)
        return ["  How do I bake bread? ", "", "x\nReply: y"][len(seen) % 3 - 1]

    found = list(
        write_prompts(people(3), ScriptedEngine(reply=reply), PromptsConfig(method="user_turn"), "k", set())
    )
    assert [p.text for p in found if isinstance(p, Prompt)] == ["How do I bake bread?"]
    assert [d.reason for d in found if isinstance(d, Drop)] == ["empty", "answers itself"]
    assert [m[0].role for m in seen] == ["system"] * 3
    assert "a baker number 0" in seen[0][0].content
    nobody = [Persona(id="0" * 16, row=0, text="")]
    seen.clear()
    list(write_prompts(nobody, ScriptedEngine(reply=reply), PromptsConfig(method="user_turn"), "k", set()))
    assert seen == [()]


def test_a_template_of_conversations_needs_no_persona(tmp_path: Path) -> None:
    template = tmp_path / "talk.txt"
    template.write_text('Write "Prompt:", "Reply:" and "Prompt:" again.')
    config = PromptsConfig(template_without_persona=str(template))
    engine = ScriptedEngine(reply=lambda m, seed, s: "Prompt: a\nReply: b\nPrompt: c")
    (found,) = write_prompts([Persona(id="0" * 16, row=0, text="")], engine, config, "k", set())
    assert isinstance(found, Prompt)
    assert (found.earlier, found.text) == (("a", "b"), "c")


def test_with_a_prefill_the_marker_stands_there_already() -> None:
    texts = [" How do I bake?", "Prompt: How do I bake?"]
    engine = ScriptedEngine(reply=lambda m, seed, s: texts[0])
    config = PromptsConfig(prefill=True)
    (found,) = write_prompts(people(1), engine, config, "k", set())
    assert isinstance(found, Prompt)
    assert found.text == "How do I bake?"
    empty = ScriptedEngine(reply=lambda m, seed, s: " ")
    (drop,) = write_prompts(people(1), empty, config, "k", set())
    assert isinstance(drop, Drop)
    assert (drop.reason, drop.text) == ("empty", "Prompt: ")


def test_the_scripted_engine_leaves_a_prefill_out_of_its_text() -> None:
    config = PromptsConfig(prefill=True)
    found = list(write_prompts(people(5), ScriptedEngine(), config, "k", set()))
    assert all(isinstance(p, Prompt) and p.text.startswith("Explain ") for p in found)


@pytest.mark.parametrize("method", ["logprob", "text"])
def test_the_judges_prefill_reaches_the_engine(method: str) -> None:
    seen: list[str] = []

    class Watching(ScriptedEngine):
        def generate(self, requests):  # type: ignore[no-untyped-def]
            return super().generate(seen.append(r.prefill) or r for r in requests)

        def choice_logprobs(self, requests):  # type: ignore[no-untyped-def]
            return super().choice_logprobs(seen.append(r.prefill) or r for r in requests)

    answers = [
        Response(id=str(i), row=i, prompt_id="p", index=i, text=f"t{i}", token_ids=None, finish_reason="stop")
        for i in (0, 1)
    ]
    config = JudgingConfig.model_validate({"method": method, "prefill": "Ranking: "})
    engine = Watching(reply=lambda m, seed, s: "1 > 2")
    (found,) = judge([OrderedPair("d", 0, "p", "q", *answers)], engine, config, set())
    assert seen == ["Ranking: "]
    assert not isinstance(found, Drop)
    assert found.verdict is not None


# Settings.


def test_settings_that_do_not_belong_together_are_refused() -> None:
    for wrong in ({"prefill": True}, {"mix": {"prompt": 1.0}}):
        with pytest.raises(ValidationError, match="belongs to method instruct"):
            PromptsConfig.model_validate({"method": "user_turn", **wrong})


def test_every_way_of_writing_prompts_has_a_place_of_its_own(tmp_path: Path) -> None:
    def stage(**prompts: Any) -> Any:
        config = make_config({"model": "m", "engine": {"name": "scripted"}, "prompts": prompts})
        return reader(config, tmp_path).stage("prompts")

    plain, begun, open_turn = stage(), stage(prefill=True), stage(method="user_turn")
    assert len({s.path for s in (plain, begun, open_turn)}) == 3
    assert len({s.key for s in (plain, begun, open_turn)}) == 3


def test_defaults_of_the_filters_count_and_ids_do_not_hang_on_them(tmp_path: Path) -> None:
    """A run with near-duplicates dropped is not one with exact ones, whichever of them is the default."""

    def folder(**filters: Any) -> Reader:
        return reader(
            make_config({"model": "m", "engine": {"name": "scripted"}, "filters": filters}), tmp_path
        )

    exact, near = folder(), folder(duplicates="near")
    assert exact.stage("filtered").settings["duplicates"] == "exact"
    assert exact.stage("filtered").path != near.stage("filtered").path
    fields = type(exact.config.filters).model_fields
    assert {*fields} <= exact.stage("filtered").settings.keys()
    assert exact.stage("filtered").key == folder(duplicates="exact").stage("filtered").key
    assert exact.stage("responses").path != near.stage("responses").path


@pytest.mark.parametrize(
    "ask",
    [{"prompts": {"method": "user_turn"}}, {"prompts": {"prefill": True}}, {"judging": {"prefill": "x"}}],
)
def test_a_server_that_cannot_is_refused_before_anything_is_written(
    ask: dict[str, Any], tmp_path: Path
) -> None:
    from sao.execution import session

    config = make_config({
        "model": "m", "engine": {"name": "openai"}, "personas": {"source": "builtin:general", "n": 4,
        "held_out": 0}, **ask,
    })  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "open_engine", lambda *_: ScriptedEngine(has_prefill=False))
        with pytest.raises(
            EngineError, match=r"cannot go on from a turn that has begun.*prompts\.method instruct"
        ):
            run(config, tmp_path / "run", until="judge")
    assert not list((tmp_path / "run").rglob("*"))


def test_a_template_that_cannot_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    recipe = {
        "model": gemma2(tmp_path / "m"), "engine": {"name": "transformers"},
        "prompts": {"method": "user_turn"},
        "personas": {"source": "builtin:general", "n": 4, "held_out": 0},
    }  # fmt: skip
    with pytest.raises(ModelError, match="takes no system message"):
        run(make_config(recipe), tmp_path / "run", until="prompts")
    assert not list((tmp_path / "run").rglob("*"))
