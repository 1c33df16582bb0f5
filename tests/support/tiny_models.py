"""Random chat models of a few thousand weights, one for each family of habits that chat models have.

Each builder saves model, tokenizer and chat template into a folder and returns its path as a string.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

TEXT = [
    "Name three tools of a baker.",
    "Which is better, the first answer or the second? 1 2 yes no",
    "Hello world, héllo wörld",
]
LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') "
    "}}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
QWEN_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}


def llama(folder: Path, **settings: Any) -> str:
    """Llama-like: BOS from the template and from the tokenizer, one end token, tied weights."""
    tokenizer = byte_tokenizer(
        ["<pad>", "<s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"], bos="<s>"
    )
    tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token = "<pad>", "<s>", "<|end|>"
    config = LlamaConfig(**{**SMALL, **token_ids(tokenizer), "tie_word_embeddings": True, **settings})
    return save(LlamaForCausalLM, config, tokenizer, LLAMA_TEMPLATE, [2], folder)


def gemma2(folder: Path, **settings: Any) -> str:
    """Gemma-2-like: no system role, soft-capping, every other layer with a window of 16, two end tokens, tied
    weights."""
    tokenizer = byte_tokenizer(["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"], bos="<bos>")
    tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token = "<pad>", "<bos>", "<eos>"
    own = {
        "query_pre_attn_scalar": 8,
        "sliding_window": 16,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 10.0,
        "tie_word_embeddings": True,
    }
    config = Gemma2Config(**{**SMALL, **token_ids(tokenizer), **own, **settings})
    return save(Gemma2ForCausalLM, config, tokenizer, GEMMA_TEMPLATE, [1, 4], folder)


def qwen3(folder: Path, **settings: Any) -> str:
    """Qwen-3-like: no BOS, a system message by default, untied weights, norms on queries and keys."""
    tokenizer = byte_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], bos=None)
    tokenizer.pad_token, tokenizer.eos_token = "<|endoftext|>", "<|im_end|>"
    config = Qwen3Config(**{**SMALL, **token_ids(tokenizer), "tie_word_embeddings": False, **settings})
    return save(Qwen3ForCausalLM, config, tokenizer, QWEN_TEMPLATE, [2, 0], folder)


def mistral(folder: Path, **settings: Any) -> str:
    """Mistral-like: every layer with a window of 16; otherwise like `llama`."""
    tokenizer = byte_tokenizer(
        ["<pad>", "<s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"], bos="<s>"
    )
    tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token = "<pad>", "<s>", "<|end|>"
    config = MistralConfig(**{**SMALL, **token_ids(tokenizer), "sliding_window": 16, **settings})
    return save(MistralForCausalLM, config, tokenizer, LLAMA_TEMPLATE, [2], folder)


def byte_tokenizer(special: list[str], bos: str | None) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that no text is unknown; `special` take the ids from 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What a config says of the tokenizer."""
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def save(
    kind: type[PreTrainedModel], config: Any, tokenizer: Any, template: str, ends: list[int], folder: Path
) -> str:
    """Save a random model of this class, which turns end with `ends`, and its tokenizer; the folder."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = kind(config)
    torch.random.set_rng_state(state)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return str(folder)
