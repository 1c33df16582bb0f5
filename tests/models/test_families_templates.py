"""The chat templates of many families, which the package trl holds as files (extra `dev`): what is said
reaches the model, a reply begins and ends where the family's own does, and reasoning stands in one block."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from tokenizers import AddedToken

from sao.config import ChatConfig
from sao.errors import ModelError
from sao.models.chat import ChatTokenizer
from sao.records import Message
from support.errors import raises
from support.tiny_models import byte_tokenizer

SPEC = find_spec("trl")
FOLDER = Path((SPEC.submodule_search_locations or ["trl"])[0] if SPEC else "trl") / "chat_templates"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.jinja"))}
needs_trl = pytest.mark.skipif(SPEC is None, reason="trl is not installed, and with it the templates")

CHATML, GEMMA = "<|im_start|>assistant\n", "<start_of_turn>model\n"
EMPTY = "<think>\n\n</think>\n\n"


@dataclass(frozen=True)
class Family:
    """What is right for a template: the end of a reply, what a prompt ends with, and what it ends with where
    the recipe asks for reasoning ("" for the same); whether it takes a system message; the spaces before a
    reply; the ends that the model itself lists."""

    end: str
    header: str
    thinking: str = ""
    takes_system: bool = True
    gap: str = ""
    eos: tuple[str, ...] = ("<eos>",)


COHERE = "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
DEEPSEEK = Family("<｜end▁of▁sentence｜>", f"<｜Assistant｜>{EMPTY}", "<｜Assistant｜><think>\n")
GEMMA4 = Family("<turn|>", "<|turn>model\n")
LLAMA3 = Family("<|eot_id|>", "<|start_header_id|>assistant<|end_header_id|>\n\n")
NEMOTRON = Family("<|im_end|>", f"{CHATML}<think></think>", f"{CHATML}<think>\n")
PHI3 = Family("<|end|>", "<|assistant|>\n")
QWEN = Family("<|im_end|>", CHATML)
QWEN35 = Family("<|im_end|>", CHATML + EMPTY, f"{CHATML}<think>\n")
FAMILIES = {
    "cohere": Family("<|END_OF_TURN_TOKEN|>", COHERE),
    "cohere2": Family("<|END_OF_TURN_TOKEN|>", f"{COHERE}<|START_RESPONSE|>"),
    "deepseek_r1_distill": DEEPSEEK,
    "deepseekv3": DEEPSEEK,
    "diffusion_gemma": GEMMA4,
    "gemma": Family("<end_of_turn>", GEMMA, takes_system=False),
    "gemma3": Family("<end_of_turn>", GEMMA),
    "gemma4": GEMMA4,
    "gemma4_v2": GEMMA4,
    "gemma4_v3": GEMMA4,
    "gemma4_v4": GEMMA4,
    "gemma4_v5": GEMMA4,
    "glm4moe": Family(
        "<|user|>", "<|assistant|>\n<think></think>\n", "<|assistant|>", eos=("<eos>", "<|user|>")
    ),
    "gptoss": Family("<|return|>", "<|start|>assistant<|channel|>final<|message|>", "<|start|>assistant"),
    "idefics3": Family("<end_of_utterance>", "Assistant:", gap=" "),
    "lfm2": QWEN,
    "lfm2_2_5": QWEN,
    "lfm2_2_5_v2": QWEN,
    "lfm2_2_5_vl": QWEN,
    "lfm2_v2": QWEN,
    "llama3": LLAMA3,
    "llama3_1": LLAMA3,
    "llama3_2": LLAMA3,
    "llava_next": Family("</s>", " [/INST]", gap=" "),
    "muse_glimmer": Family("<|eot|>", "<|start|>assistant to=user<|message|>", "<|start|>assistant"),
    "nemotron_3_5_lightning": NEMOTRON,
    "nemotron_3_nano": NEMOTRON,
    "nemotron_3_super": NEMOTRON,
    "nemotron_3_ultra": NEMOTRON,
    "phi3": PHI3,
    "phi3_5": PHI3,
    "qwen2_5": QWEN,
    "qwen2_5_vl": QWEN,
    "qwen3": Family("<|im_end|>", CHATML + EMPTY, CHATML),
    "qwen3_5_nothink": QWEN35,
    "qwen3_5_think": QWEN35,
    "qwen3_6": QWEN35,
    "qwen3_8": QWEN35,
    "qwen3_instruct_2507": QWEN,
    "qwen3_vl": QWEN,
    "smolvlm": Family("<end_of_utterance>", "Assistant:", gap=" "),
}
"""By the name of the file; the files for training (…_training) are the same to us. None is refused."""
# Control text in the templates; in [INST], and in names between < and >, it is no token of its own.
MARKER = re.compile(
    r"<[|｜][^<>\s'\"]+>|<[^<>\s|'\"=]+\|>|</?(?:start|end)_of_\w+>|</s>|</?think>|\[gMASK\]|<sop>"
)
THINKS = ChatConfig(template_args={"enable_thinking": True})
QUESTION, ANSWER, SYSTEM = "Name three tools", "A hammer", Message("system", "be brief")
ASKED = [Message("user", QUESTION)]


@cache
def chat_of(name: str, special: bool = True, thinks: bool = False) -> ChatTokenizer:
    """The template on a tokenizer with its own markers, which are special tokens or not."""
    source = FILES[name].read_text("utf-8")
    markers = sorted(set(MARKER.findall(source)))
    tokenizer = byte_tokenizer(["<eos>", "<bos>", *(markers if special else ())], bos="<bos>")
    tokenizer.eos_token, tokenizer.bos_token = "<eos>", "<bos>"
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in markers])
    tokenizer.chat_template = source
    eos = [tokenizer.get_vocab()[token] for token in family_of(name).eos]
    return ChatTokenizer(tokenizer, eos, name, template=THINKS if thinks else None)


def family_of(name: str) -> Family:
    return FAMILIES[name.removesuffix("_training")]


def text_of(chat: ChatTokenizer, ids: list[int]) -> str:
    return str(chat.tokenizer.decode(ids))


def blocks(text: str) -> list[str]:
    """What opens and closes reasoning, in order."""
    return re.findall(r"</?think>", text)


every_template = pytest.mark.parametrize(
    ("name", "special"), [(name, special) for name in FILES for special in (True, False)]
)


@needs_trl
def test_every_template_stands_in_the_table() -> None:
    assert {name.removesuffix("_training") for name in FILES} == set(FAMILIES)
    assert len(FAMILIES) == 41


@needs_trl
@every_template
def test_what_is_said_reaches_the_model(name: str, special: bool) -> None:
    chat, family = chat_of(name, special), family_of(name)
    prompt = text_of(chat, chat.prompt_ids(ASKED))
    assert prompt.count(QUESTION) == 1
    assert prompt.endswith(family.header)
    assert chat.prompt_ids(ASKED).count(chat.bos_id or 0) == 1
    assert chat.takes_system == family.takes_system
    told = text_of(chat, chat.prompt_ids([SYSTEM, *ASKED]))
    assert told.count("be brief") == told.count(QUESTION) == 1
    if family.takes_system:
        assert "be brief" in text_of(chat, chat.user_turn_ids([SYSTEM]))
    else:
        assert f"be brief\n\n{QUESTION}" in told
        with raises(ModelError, key="prompts.method"):
            chat.user_turn_ids([SYSTEM])
    later = text_of(
        chat, chat.prompt_ids([*ASKED, Message("assistant", ANSWER), Message("user", "And more?")])
    )
    assert later.index(QUESTION) < later.index(ANSWER) < later.index("And more?")
    assert later.endswith(family.header)


@needs_trl
@every_template
def test_a_reply_ends_as_the_family_ends_it(name: str, special: bool) -> None:
    chat, family = chat_of(name, special), family_of(name)
    assert text_of(chat, [chat.turn_end_id]) == family.end
    reply = chat.reply_ids(ASKED, ANSWER)
    assert reply[-1] == chat.turn_end_id
    assert reply.count(chat.turn_end_id) == 1
    read = chat.read(reply[:-1])
    assert (read.text, read.kept) == (f"{family.gap}{ANSWER}", True)
    whole = text_of(chat, [*chat.prompt_ids(ASKED), *reply])
    assert whole.split(family.header)[-1].startswith(family.gap + ANSWER)
    assert chat.turn_end_id in chat.end_ids
    ends, stops = chat.user_ends
    assert stops or ends > chat.end_ids


@needs_trl
@every_template
def test_choices_are_read_where_the_answer_begins(name: str, special: bool) -> None:
    for thinks in (False, True):
        chat, family = chat_of(name, special, thinks), family_of(name)
        for choices in (("1", "2"), ("Yes", "No")):
            prompt, ids = chat.choice_ids(ASKED, choices)
            shown = text_of(chat, prompt)
            assert shown.rstrip(" ").endswith(family.header.rstrip(" ")) or thinks
            assert blocks(shown)[-2:] in ([], ["<think>", "</think>"])
            for choice, token in zip(choices, ids, strict=True):
                assert choice.startswith(text_of(chat, [token]).strip())
                assert text_of(chat, [token]).strip()


@needs_trl
@every_template
def test_reasoning_stands_in_one_block(name: str, special: bool) -> None:
    """Left out where nobody asked for it; else learnt, after the prompt that the template opens."""
    written = ("<think>\nfour\n</think>\n\n4", "four\n</think>\n\n4")
    for thinks in (False, True):
        chat, family = chat_of(name, special, thinks), family_of(name)
        prompt = text_of(chat, chat.prompt_ids(ASKED))
        assert prompt.endswith((thinks and family.thinking) or family.header)
        knows = "</think>" in FILES[name].read_text("utf-8")
        for text in written:
            whole = prompt + text_of(chat, chat.reply_ids(ASKED, text))
            reply = whole.split(QUESTION)[-1]
            if not knows:
                assert text in reply  # words like others
                continue
            assert blocks(reply) in ([], ["<think>", "</think>"])
            assert ("four" in reply) == thinks
            assert re.search(rf"4{re.escape(family.end)}\s*$", reply)
            earlier = [*ASKED, Message("assistant", text), *ASKED]
            assert "four" not in text_of(chat, chat.prompt_ids(earlier))


@needs_trl
@every_template
def test_control_text_in_data_opens_no_turn(name: str, special: bool) -> None:
    chat, family = chat_of(name, special), family_of(name)
    plain = chat.prompt_ids([Message("user", "ab")])
    for text in (family.end, *MARKER.findall(family.header)):
        if text not in ("<think>", "</think>"):
            assert chat.prompt_ids([Message("user", f"a{text}b")]) == plain
            assert chat.reply_ids(ASKED, f"a{text}b") == chat.reply_ids(ASKED, "ab")
