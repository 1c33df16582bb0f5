"""Reward models: the score is the head's value at the last token, in a batch as alone; foreign weights are
refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForSequenceClassification,
    Gemma3Config,
    Gemma3ForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from sao.config import EngineConfig
from sao.engines.reward import RewardModel, check_reward_model
from sao.engines.scripted import ScriptedEngine
from sao.errors import ModelError
from sao.method import run
from support import planted, tiny_models
from support.checks import known
from support.errors import raises
from support.made_up import scripted_recipe
from support.run_files import records_of

PLAIN = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
TEMPLATES = {
    "ends in EOS": tiny_models.LLAMA_TEMPLATE,
    "several EOS": tiny_models.LLAMA_TEMPLATE + "<|end|><|end|>",
    "no EOS": PLAIN,
    "pad inside": "<pad>{% for m in messages %}<|{{ m['role'] }}|><pad>{{ m['content'] }}<|end|>{% endfor %}",
    "ends in pad": PLAIN + "<pad>",
}
TEXTS = [("Name a tool.", "Hello " * k + "world") for k in (1, 7, 20, 3)] + [("Hello?", "x"), ("Hello?", "")]
PAD, EOS = 0, 2


def llama(folder: Path, template: str = TEMPLATES["ends in EOS"], **settings: Any) -> str:
    """A tiny random Llama with a score head; `settings` go into its config."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_models.llama(folder / "base"))
    config = LlamaConfig(**{**tiny_models.SMALL, "vocab_size": len(tokenizer), "num_labels": 1, **settings})
    return keep(folder / "rm", LlamaForSequenceClassification, config, tokenizer, template)


ONE_SCORE: dict[str, Any] = {"num_labels": 1}


def keep(folder: Path, kind: Any, config: Any, tokenizer: Any, template: str | None) -> str:
    torch.manual_seed(1)
    kind(config).save_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return str(folder)


def retell(path: str, change: Callable[[Any], None]) -> str:
    """Change a folder's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    change(tokenizer)
    tokenizer.save_pretrained(path)
    return path


def reweigh(path: str, change: Callable[[dict[str, torch.Tensor]], None]) -> str:
    """Change a folder's weights."""
    file = Path(path) / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})
    return path


def by_hand(path: str, texts: list[tuple[str, str]], place: int = -1) -> list[float]:
    """The score head on the hidden state at the last token (or another) of each text by itself."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    network: Any = AutoModelForSequenceClassification.from_pretrained(
        path, attn_implementation="eager"
    ).eval()
    found = []
    for prompt, answer in texts:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        encoded: Any = tokenizer.apply_chat_template(turns, return_dict=True)
        ids = torch.tensor([encoded["input_ids"]])
        body = getattr(network, network.base_model_prefix)
        with torch.no_grad():
            found.append(network.score(body(input_ids=ids).last_hidden_state[0, place]).item())
    return found


def spread(path: str, texts: list[tuple[str, str]] = TEXTS) -> float:
    """The highest score less the lowest, after scores in a batch, alone and by hand were the same."""
    model = RewardModel(path, EngineConfig(threads=1))
    together, alone = model.score(texts), [model.score([text])[0] for text in texts]
    assert together == pytest.approx(by_hand(path, texts), abs=1e-4)
    assert alone == pytest.approx(together, abs=1e-4)
    assert model.score(texts[::-1]) == pytest.approx(together[::-1], abs=1e-4)
    model.close()
    return max(together) - min(together)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("pad", [None, PAD, EOS, -1])
def test_the_score_is_read_at_the_last_token(tmp_path: Path, template: str, pad: int | None) -> None:
    path = llama(tmp_path, TEMPLATES[template], pad_token_id=pad)
    assert spread(path) > 0.01  # the tokenizer has a pad token
    assert spread(retell(path, lambda tokenizer: setattr(tokenizer, "pad_token", tokenizer.eos_token))) > 0.01
    assert spread(retell(path, lambda tokenizer: setattr(tokenizer, "pad_token", None))) > 0.01


def test_scores_of_a_model_in_bfloat16_are_made_in_float32(tmp_path: Path) -> None:
    path = llama(tmp_path)
    model = RewardModel(path, EngineConfig(threads=1, dtype="bfloat16"))
    found = model.score(TEXTS)
    model.close()
    assert found == pytest.approx(by_hand(path, TEXTS), abs=0.05)
    rounded = torch.tensor(found).bfloat16().tolist()
    assert [a for a, b in zip(found, rounded, strict=True) if a != b], "all scores are bfloat16 numbers"


def test_one_token_early_is_another_score(tmp_path: Path) -> None:
    """What the tests above tell apart."""
    path = llama(tmp_path, pad_token_id=None)
    early, right = by_hand(path, TEXTS, -2), by_hand(path, TEXTS)
    assert min(abs(a - b) for a, b in zip(early, right, strict=True)) > 0.05


def test_padding_on_the_left_in_the_tokenizers_config_does_not_count(tmp_path: Path) -> None:
    path = llama(tmp_path, pad_token_id=EOS)
    file = Path(path) / "tokenizer_config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"padding_side": "left", "truncation_side": "left"})
    )
    assert AutoTokenizer.from_pretrained(path).padding_side == "left"
    assert spread(path) > 0.01


def test_a_length_and_a_padding_stored_in_the_tokenizer_do_not_count(tmp_path: Path) -> None:
    def fixed(tokenizer: Any) -> None:
        tokenizer.backend_tokenizer.enable_padding(length=64, pad_id=EOS, pad_token="<|end|>")
        tokenizer.backend_tokenizer.enable_truncation(8)

    assert spread(retell(llama(tmp_path), fixed)) > 0.01


def test_absolute_positions_and_a_pooling_of_its_own(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_models.llama(tmp_path / "base"))
    tokenizer.pad_token = tokenizer.eos_token
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=256,
        **ONE_SCORE,
        initializer_range=0.3,
    )
    assert (
        spread(
            keep(
                tmp_path / "rm", GPT2ForSequenceClassification, config, tokenizer, tiny_models.LLAMA_TEMPLATE
            )
        )
        > 0.01
    )


@pytest.mark.parametrize("pad", [None, EOS])
def test_a_config_inside_a_config(tmp_path: Path, pad: int | None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_models.llama(tmp_path / "base"))
    text = {
        **tiny_models.SMALL,
        "vocab_size": len(tokenizer),
        "pad_token_id": pad,
        "query_pre_attn_scalar": 8,
    }
    sight = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "image_size": 28, "patch_size": 14}  # fmt: skip
    config = Gemma3Config(text_config=text, vision_config=sight, **ONE_SCORE, mm_tokens_per_image=4)
    tokenizer.pad_token = tokenizer.eos_token
    assert (
        spread(
            keep(
                tmp_path / "rm",
                Gemma3ForSequenceClassification,
                config,
                tokenizer,
                tiny_models.LLAMA_TEMPLATE,
            )
        )
        > 0.01
    )


def test_capped_attention_scores_are_capped(tmp_path: Path) -> None:
    """Gemma-2 under SDPA would leave the cap out."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_models.gemma2(tmp_path / "base"))
    config = Gemma2Config(
        **tiny_models.SMALL,
        vocab_size=len(tokenizer),
        **ONE_SCORE,
        query_pre_attn_scalar=1,
        attn_logit_softcapping=0.5,
    )
    assert (
        spread(
            keep(tmp_path / "rm", Gemma2ForSequenceClassification, config, tokenizer, tokenizer.chat_template)
        )
        > 0.01
    )


def test_a_model_that_gives_its_pad_token_no_position(tmp_path: Path) -> None:
    """RoBERTa: a filler of another id would count as a place, here beyond the last one. "<pad>" in a text
    stays what it is."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_models.llama(tmp_path / "base"))
    tokenizer.model_max_length = 38
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=39, pad_token_id=PAD, bos_token_id=1, eos_token_id=EOS, **ONE_SCORE,
        initializer_range=0.3,
    )  # fmt: skip
    path = keep(tmp_path / "rm", RobertaForSequenceClassification, config, tokenizer, None)
    model = RewardModel(path, EngineConfig(threads=1))
    texts = [("Hello", "x"), ("Hello", "world <pad> x"), ("Hello", "x" * 29), ("x", "<pad>" * 20)]
    network = AutoModelForSequenceClassification.from_pretrained(path).eval()
    right = []
    for text in texts:
        with torch.no_grad():
            right.append(network(torch.tensor([tokenizer(*text).input_ids])).logits.item())
    assert model.score(texts) == pytest.approx(right, abs=1e-4)
    assert model.score(texts[:1] + texts[2:3]) == pytest.approx([right[0], right[2]], abs=1e-4)


def test_texts_that_hold_every_token_are_scored_one_by_one(tmp_path: Path) -> None:
    words = {word: i for i, word in enumerate(("user", "assistant", "a", "b", "c"))}
    inner = Tokenizer(models.WordLevel(words, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="c")
    config = LlamaConfig(**{**tiny_models.SMALL, "vocab_size": 5, "num_labels": 1})
    template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {{ eos_token }} {% endfor %}"
    path = keep(tmp_path / "rm", LlamaForSequenceClassification, config, tokenizer, template)
    assert spread(path, [("a b b", "a"), ("a", "b a"), ("b b", "a"), ("a b", "b")]) > 0.01


def test_a_text_longer_than_the_context_has_no_score(tmp_path: Path) -> None:
    model = RewardModel(llama(tmp_path, max_position_embeddings=40), EngineConfig(threads=1))
    scores = model.score([("Hello", "x" * 100), ("Hello", "x")])
    assert math.isnan(scores[0])
    assert math.isfinite(scores[1])


# Weights


def test_a_chat_model_is_no_reward_model(tmp_path: Path) -> None:
    for name in ("llama", "qwen3", "gemma2", "mistral"):
        path = getattr(tiny_models, name)(tmp_path / name)
        with raises(
            ModelError,
            key="reward model",
            match=r"score\.weight is missing.*ForSequenceClassification",
        ):
            RewardModel(path, EngineConfig())


def test_a_tokenizer_that_does_not_belong_to_it_is_named(tmp_path: Path) -> None:
    larger = retell(llama(tmp_path / "larger"), lambda tokenizer: tokenizer.add_tokens(["onemoreword"]))
    with raises(ModelError, key="embedding", match="onemoreword"):
        RewardModel(larger, EngineConfig())
    bare = Path(llama(tmp_path / "bare"))
    (bare / "tokenizer.json").unlink()
    for look in (check_reward_model, RewardModel):
        with raises(ModelError, key="tokenizer.json"):
            look(str(bare), EngineConfig())


def test_missing_weights_are_named_and_counted(tmp_path: Path) -> None:
    def drop_a_layer(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if ".layers.1." in name]:
            del weights[name]

    with raises(
        ModelError,
        key="reward model",
        match=r"layers\.1\.input_layernorm\.weight is missing .*9 such",
    ):
        RewardModel(reweigh(llama(tmp_path), drop_a_layer), EngineConfig())


def test_unexpected_weights_are_named_and_counted(tmp_path: Path) -> None:
    def add(weights: dict[str, torch.Tensor]) -> None:
        weights["score.bias"], weights["v_head.summary.weight"] = torch.zeros(1), torch.zeros(1, 32)

    with raises(
        ModelError,
        key="reward model",
        match=r"score\.bias has no place.*2 such",
    ):
        RewardModel(reweigh(llama(tmp_path), add), EngineConfig())


def test_renamed_weights_are_named_on_both_sides(tmp_path: Path) -> None:
    def rename(weights: dict[str, torch.Tensor]) -> None:
        for name in list(weights):
            weights[f"policy.{name}"] = weights.pop(name)

    with raises(
        ModelError,
        key="reward model",
        match=r"model\.embed.* is missing .*\(21 such weights\); the weight policy\.model\.embed.*\(21 such",
    ):
        RewardModel(reweigh(llama(tmp_path), rename), EngineConfig())


def test_weights_of_another_shape_are_named_and_counted(tmp_path: Path) -> None:
    def cut(weights: dict[str, torch.Tensor]) -> None:
        weights["score.weight"] = weights["score.weight"][:, :16].clone()

    with raises(ModelError, key="reward model", match=r"weight score\.weight has another shape"):
        RewardModel(reweigh(llama(tmp_path), cut), EngineConfig())


def test_a_head_left_over_from_the_language_model_does_no_harm(tmp_path: Path) -> None:
    def add(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"] = torch.zeros(300, 32)

    assert spread(reweigh(llama(tmp_path), add)) > 0.01


# A reward model


def reward_model(folder: Path, labels: int = 1, template: bool = True) -> str:
    """A tiny random sequence classifier with a chat template."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    from support import tiny_models

    base = tiny_models.llama(folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(1)
    settings = {**tiny_models.SMALL, "max_position_embeddings": 512, "num_labels": labels}
    config = LlamaConfig(**settings, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    LlamaForSequenceClassification(config).save_pretrained(folder / "rm")
    if not template:
        tokenizer.chat_template = None
    tokenizer.save_pretrained(folder / "rm")
    return str(folder / "rm")


@pytest.mark.parametrize("template", [True, False])
def test_a_reward_model_scores_alone_as_in_a_batch(tmp_path: Path, template: bool) -> None:
    from sao.config import EngineConfig
    from sao.engines.reward import RewardModel

    model = RewardModel(reward_model(tmp_path, template=template), EngineConfig(threads=1))
    texts = [("Name a tool.", "Hello " * k) for k in (1, 7, 20, 3)] + [("Name a tool.", "Hello " * 600)]
    together = model.score(texts)
    assert math.isnan(together[-1])
    assert len(set(together[:4])) == 4
    for text, value in zip(texts[:4], together[:4], strict=True):
        assert model.score([text])[0] == pytest.approx(value, abs=1e-4)
    model.close()


def test_a_run_judged_by_a_reward_model(tmp_path: Path) -> None:
    rm = reward_model(tmp_path)
    judging = {"method": "reward", "engine": {"model": rm, "threads": 1}}
    engine = ScriptedEngine(reply=planted.reply)
    config = scripted_recipe(12, judging=judging, pairs={"min_p": 0.5})
    summary = run(config, tmp_path / "r", until="pairs", engine=engine)
    rows = records_of(tmp_path / "r", "judgments")
    assert {row["judge"] for row in rows} == {rm}
    assert known(summary.judge).flip_rate == 0.0
    assert known(known(summary.kept).share) > 0.9


def test_what_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    from sao.config import EngineConfig
    from sao.engines.reward import RewardModel
    from sao.errors import ModelError

    with raises(ModelError, key="reward model", match="scores 3 classes"):
        RewardModel(reward_model(tmp_path / "a", labels=3), EngineConfig())
    reward_model(tmp_path / "b")
    with raises(ModelError, key="reward model", match=r"weight score\.weight is missing"):
        RewardModel(str(tmp_path / "b/base"), EngineConfig())
