"""Chat templates: turns that have begun, the user's turn left open, system messages folded in, and
what is refused."""

from collections.abc import Callable
from pathlib import Path

from sao.config import EngineConfig
from sao.errors import ModelError
from sao.models.chat import ChatTokenizer
from sao.records import Message
from support.errors import raises
from support.tiny_models import gemma2, llama, qwen3

SYSTEM = Message("system", "be brief")


CONFIG = EngineConfig(name="transformers", device="cpu", slots=4, threads=1)


def load(family: Callable[[Path], str], folder: Path) -> ChatTokenizer:
    return ChatTokenizer.load(family(folder / "m"), CONFIG)


def text_of(chat: ChatTokenizer, ids: list[int]) -> str:
    return str(chat.tokenizer.decode(ids))


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
    with raises(ModelError, key="prompts.method", match=r"prompts\.method instruct"):
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
    with raises(ModelError, key="prompts.method", match=r"user's text 2 times.*prompts\.method instruct"):
        chat.user_turn_ids([])


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
    with raises(ModelError, key="judging.choices"):
        chat.choice_ids(messages, ("1", "1 or 2"), "x ")
