"""The recipe's section `chat`: which models it belongs to, which records hang on it, and who is told."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from sao.config import ChatConfig, Config, EngineConfig, TrainConfig, make_config
from sao.data.preferences import TextPair
from sao.engines.openai import OpenAIEngine
from sao.engines.transformers import TransformersEngine
from sao.errors import ConfigError, EngineError
from sao.execution.session import Role, Session
from sao.models.chat import ChatTokenizer
from sao.models.locate import identity_of
from sao.pipeline.players import Player
from sao.pipeline.roles import roles_of
from sao.pipeline.rounds import Round, _chat_key
from sao.pipeline.steps import STEPS
from sao.pipeline.two_models import TwoModels
from sao.records import Drop, Message, PreferencePair, Prompt, Response
from sao.training.cards import REASONING
from sao.training.job import encode_pair, encode_text, train_run
from support import tiny_models
from support.errors import raises
from support.odd_servers import Odd, asked

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ tone }}{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{{ tone }}{% endif %}"
)
ARGS = {"tone": "softly "}
ASKED = [Message("user", "Name three tools")]
ON_CPU = {"device": "cpu", "threads": 1, "slots": 4}


@pytest.fixture
def base(tmp_path: Path) -> str:
    """A base model: it has no chat template."""
    folder = Path(tiny_models.llama(tmp_path / "base"))
    (folder / "chat_template.jinja").unlink()
    return str(folder)


def told(tmp_path: Path, **sections: Any) -> Config:
    file = tmp_path / "mine.jinja"
    file.write_text(TEMPLATE)
    return make_config({"chat": {"template": str(file), "template_args": ARGS}, **sections})


def texts_of(chat: ChatTokenizer) -> str:
    return str(chat.tokenizer.decode(chat.prompt_ids(ASKED)))


def test_it_belongs_to_the_recipes_model_and_not_to_another_judge(tmp_path: Path) -> None:
    for engine, gets in (
        (None, True),
        ({"name": "transformers"}, True),
        ({"name": "transformers", "model": "some/model"}, True),
        ({"name": "transformers", "model": "another/judge"}, False),
    ):
        config = told(tmp_path, model="some/model", judging={"engine": engine})
        roles = roles_of(config)
        for role in (roles.policy, roles.initial, roles.base):
            assert role.chat == config.chat
        assert roles.judges[0].role.chat == roles.reader.role.chat == (config.chat if gets else ChatConfig())


def test_in_an_evaluation_it_belongs_to_base_and_tuned(tmp_path: Path) -> None:
    models = TwoModels(told(tmp_path), tmp_path / "eval")
    for name, gets in (("base", True), ("tuned", True), ("reference", False)):
        role = models.role(Player(role=name, model="builtin:world"))
        assert (role.chat == models.config.chat) == gets
    assert models.judge.chat == models.config.chat


def test_every_step_that_asks_the_model_hangs_on_it(tmp_path: Path) -> None:
    def folders(config: Config) -> dict[str, str]:
        run = Round(config, tmp_path, STEPS)
        return {s.name: " ".join(x.fingerprint for x in run.stages(s.name)) for s in STEPS if run.has(s.name)}

    plain, given = folders(make_config({})), folders(told(tmp_path))
    assert plain["personas"] == given["personas"]  # nobody was asked
    assert all(given[name] != plain[name] for name in plain if name != "personas")
    (tmp_path / "other.jinja").write_text(TEMPLATE)
    moved = folders(make_config({"chat": {"template": str(tmp_path / "other.jinja"), "template_args": ARGS}}))
    assert moved == given  # what the file holds counts, not where it lies
    (tmp_path / "other.jinja").write_text(TEMPLATE + " ")
    changed = folders(
        make_config({"chat": {"template": str(tmp_path / "other.jinja"), "template_args": ARGS}})
    )
    assert changed["prompts"] != given["prompts"]
    other_judge: dict[str, Any] = {"engine": {"name": "openai", "model": "another/judge"}}
    judged = [Round(c, tmp_path, STEPS) for c in (make_config({"judging": other_judge}),
                                                  told(tmp_path, judging=other_judge))]  # fmt: skip
    identities = [run.identity(run.roles.judges[0].role) for run in judged]
    assert identities[0] == identities[1]


def test_the_engine_writes_by_it_and_the_session_tells_roles_apart(base: str, tmp_path: Path) -> None:
    config = told(tmp_path, model=base, engine={"name": "transformers", **ON_CPU})
    session, policy = Session(), roles_of(config).policy
    engine = session.engine(policy)
    assert isinstance(engine, TransformersEngine)
    assert texts_of(engine.chat) == "<s><|user|>softly Name three tools<|end|><|assistant|>softly "
    assert engine.identity == identity_of(policy.engine, base, None, config.chat)
    assert engine.identity != identity_of(policy.engine, base)
    assert session.engine(policy) is engine
    louder = config.chat.model_copy(update={"template_args": {"tone": "loudly "}})
    other = session.engine(Role(name="policy", engine=policy.engine, model=base, chat=louder))
    assert isinstance(other, TransformersEngine)
    assert "loudly" in texts_of(other.chat)
    session.close()


def test_training_encodes_by_it_and_saves_it_with_the_model(base: str, tmp_path: Path) -> None:
    settings = {"batch_size": 2, "micro_batch_size": 1, "max_length": 256, "epochs": 1}
    config = told(tmp_path, model=base, engine={"name": "transformers", **ON_CPU}, train=settings)
    pairs = [
        TextPair(id=str(i), row=i, messages=(Message("user", f"What is {i}?"),), chosen=f"It is {i}",
        rejected="no", p_chosen=None, margin=None)
        for i in range(4)
    ]  # fmt: skip
    counts = train_run(config, pairs, tmp_path / "out", lambda *_: None, lambda _: None)
    assert counts.records == 4
    tuned = str(tmp_path / "out" / "model")
    assert "{{ tone }}" in (tmp_path / "out" / "model" / "chat_template.jinja").read_text()
    saved = ChatTokenizer.load(tuned, config.engine, template=ChatConfig(template_args=ARGS))
    used = ChatTokenizer.load(base, config.engine, template=config.chat)
    assert saved.prompt_ids(ASKED) == used.prompt_ids(ASKED)
    assert saved.reply_ids(ASKED, "It is") == used.reply_ids(ASKED, "It is")


def test_reasoning_in_given_answers_is_left_out_aloud_or_learnt(base: str, tmp_path: Path) -> None:
    thinks = TEMPLATE + "{# <think> </think> #}"
    pairs: list[TextPair | Drop] = [
        TextPair(id=str(i), row=i, messages=(Message("user", f"What is {i}?"),),
        chosen=f"<think>\nwell\n</think>\n\nIt is {i}", rejected="<think>\nhm\n</think>\n\n" + last,
        p_chosen=None, margin=None)
        for i, last in enumerate(("no", "never", ""))
    ]  # fmt: skip
    settings = {"batch_size": 2, "micro_batch_size": 1, "max_length": 256, "epochs": 1}
    for args, learnt in ({}, False), ({"enable_thinking": True}, True):
        (tmp_path / "thinks.jinja").write_text(thinks)
        chat = {"template": str(tmp_path / "thinks.jinja"), "template_args": args}
        engine = {"name": "transformers", **ON_CPU}
        config = make_config({"model": base, "chat": chat, "engine": engine, "train": settings})
        lines: list[str] = []
        out = tmp_path / f"out {learnt}"
        counts = train_run(config, iter(pairs), out, lambda *_: None, lines.append)
        assert counts.reasons == {"empty answer": 1}  # thought, and said nothing
        assert any("6 answers hold reasoning" in line for line in lines) == (not learnt)
        tokenizer = ChatTokenizer.load(base, config.engine, template=config.chat)
        text = str(tokenizer.tokenizer.decode(tokenizer.reply_ids(ASKED, "<think>\nwell\n</think>\n\nfine")))
        assert text == ("<think>\nwell\n</think>\n\nfine<|end|>" if learnt else "fine<|end|>")


@pytest.mark.parametrize("how", ["learn", "keep", "drop"])
@pytest.mark.parametrize("given", [False, True])
def test_what_training_does_with_reasoning(base: str, tmp_path: Path, how: str, given: bool) -> None:
    """Sampled answers and pairs that came as text: the reasoning counts, is only read, or is left out."""
    (tmp_path / "thinks.jinja").write_text(TEMPLATE + "{# <think> </think> #}")
    chat = {"template": str(tmp_path / "thinks.jinja"), "template_args": {"enable_thinking": True}}
    engine = {"name": "transformers", **ON_CPU}
    config = make_config({"model": base, "chat": chat, "engine": engine, "train": {"reasoning": how}})
    tokenizer = ChatTokenizer.load(base, config.engine, template=config.chat)
    thought = "<think>\nwell\n</think>\n\n"
    if given:
        text = TextPair(id="p", row=0, messages=tuple(ASKED), chosen=thought + "yes", rejected="no",
                        p_chosen=None, margin=None)  # fmt: skip
        pair = encode_text(tokenizer, text, how)
    else:
        ids = tuple(tokenizer.reply_ids(ASKED, thought + "yes"))
        prompt = Prompt(id="q", row=0, persona_id="", text=ASKED[0].content)
        common: Any = {"prompt_id": "q", "finish_reason": "stop"}
        yes = Response(id="a", row=0, index=0, text="yes", token_ids=ids, reasoning="well", **common)
        no = Response(id="b", row=1, index=1, text="no", token_ids=None, **common)
        label = PreferencePair(id="p", row=0, prompt_id="q", chosen_id="a", rejected_id="b", p_chosen=None,
                               margin=None)  # fmt: skip
        pair = encode_pair(tokenizer, config, prompt, label, yes, no)
    decode = tokenizer.tokenizer.decode
    learnt = decode(pair.chosen_ids[pair.chosen_read :])
    whole = decode(pair.chosen_ids)
    assert whole == ("yes<|end|>" if how == "drop" else f"{thought}yes<|end|>")
    assert learnt == (f"{thought}yes<|end|>" if how == "learn" else "yes<|end|>")
    assert decode(pair.rejected_ids[pair.rejected_read :]) == "no<|end|>"
    assert pair.rejected_read == 0
    if not given:  # of an engine that gives no ids the reasoning comes as text
        as_text = encode_pair(tokenizer, config, prompt, label, replace(yes, token_ids=None), no)
        assert decode(as_text.chosen_ids) == whole
        assert decode(as_text.chosen_ids[as_text.chosen_read :]) == learnt


def test_the_card_says_what_became_of_reasoning() -> None:
    ways = get_args(TrainConfig.model_fields["reasoning"].annotation)
    assert tuple(REASONING) == ways
    assert len({*REASONING.values()}) == len(ways)


def test_each_setting_of_a_chat_is_remembered_apart() -> None:
    """By this key a run's manifest knows what a model was told: one that is left out would reuse records."""
    role = Role(name="policy", engine=EngineConfig(), model="m", revision=None)
    settings: list[dict[str, Any]] = [
        {}, {"template": "a.jinja"}, {"template_args": {"thinking": True}}, {"reasoning_tokens": 7}
    ]  # fmt: skip
    assert {name for given in settings for name in given} == set(ChatConfig.model_fields)
    keys = [_chat_key(replace(role, chat=ChatConfig(**given))) for given in settings]
    assert len(set(keys)) == 4
    assert keys[0] == ""


@pytest.mark.parametrize(
    ("sections", "where"),
    [
        ({"engine": {"name": "openai"}}, "engine"),
        ({"evaluation": {"engine": {"name": "openai"}}}, "evaluation.engine"),
        ({"judging": {"engine": {"name": "openai"}}}, "judging.engine"),
        (
            {
                "judging": {
                    "method": "text",
                    "panel": [{"template": "judge_short", "engine": {"name": "openai"}}],
                }
            },
            "judging.panel.0.engine",
        ),
    ],
)
def test_a_file_is_refused_where_a_server_writes_chats(
    sections: dict[str, Any], where: str, tmp_path: Path
) -> None:
    with raises(ConfigError, key="recipe", match=f"{where}.name openai.*--chat-template FILE"):
        told(tmp_path, **sections)
    make_config({"chat": {"template_args": ARGS}, **sections})
    with raises(EngineError, key="chat.template"):
        OpenAIEngine("m", EngineConfig(name="openai"), chat=ChatConfig(template="mine.jinja"))


def test_a_file_goes_with_another_judge_on_a_server(tmp_path: Path) -> None:
    told(tmp_path, judging={"engine": {"name": "openai", "model": "another/judge"}})


def test_a_server_is_told_the_arguments(tmp_path: Path) -> None:
    chat = ChatConfig(template_args={"enable_thinking": True})
    for extra, right in (
        ({}, {"enable_thinking": True}),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}),
    ):
        with Odd() as server:
            openai: Any = {"base_url": server.url, "extra_body": extra}
            engine = OpenAIEngine("scripted", EngineConfig(name="openai", openai=openai), chat=chat)
            list(engine.generate(iter(asked("a"))))
            engine.close()
            assert {json.dumps(body["chat_template_kwargs"]) for body in server.bodies} == {json.dumps(right)}
    with Odd() as server:
        engine = OpenAIEngine("scripted", EngineConfig(name="openai", openai={"base_url": server.url}))  # type: ignore[arg-type]
        engine.close()
        assert not any("chat_template_kwargs" in body for body in server.bodies)


def test_names_that_sao_sets_itself_are_refused() -> None:
    with raises(ConfigError, key="chat.template_args", match="tools: set by SAO itself"):
        make_config({"chat": {"template_args": {"tools": []}}})
    with raises(ConfigError, key="chat.template_args", match="with a space after the colon"):
        make_config({"chat": {"template_args": {"tone:1": None}}})
