"""The whole path on a GPU, in small: the engine, the policy, a training step; skipped where there is none.
scripts/gpu_check.py runs these and tests/training/test_gpu.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sao.config import EngineConfig, TrainConfig
from sao.engines import Request, Sample, Sampling
from sao.engines.transformers import TransformersEngine
from sao.models.load import load_model
from sao.records import Message
from sao.training import train
from sao.training.batches import pack, pad
from sao.training.policy import as_policy, attention_of, check_policy, part_sums
from support import tiny_models
from support.tiny_training import CONFIG, some_pairs, tiny_model, tiny_tokenizer, weights

DEVICE = "cuda"
BUILDERS = {
    "llama": tiny_models.llama,
    "gemma2": tiny_models.gemma2,
    "qwen3": tiny_models.qwen3,
    "mistral": tiny_models.mistral,
}
METHODS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adamw_8bit": {"optimizer": "adamw_8bit"},
    "adamw_sr": {"optimizer": "adamw_sr", "weights": "bfloat16"},
    "lora": {"method": "lora", "weights": "bfloat16"},
}

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("name", BUILDERS)
def test_greedy_text_equals_that_of_generate(name: str, tmp_path: Path) -> None:
    folder = BUILDERS[name](tmp_path)
    config = EngineConfig(name="transformers", device=DEVICE, dtype="float32", slots=4)
    engine, plain = TransformersEngine(folder, config), load_model(folder, config)
    chats = [(Message("user", "hello world " * i + str(i)),) for i in range(6)]
    requests = [Request(c, (Sample(str(i), i),), Sampling(24, 0.0)) for i, c in enumerate(chats)]
    found = {done.id: done.token_ids for done in engine.generate(requests)}
    for i, messages in enumerate(chats):
        ids = torch.tensor([engine.chat.prompt_ids(messages)], device=DEVICE)
        generate: Any = plain.generate
        out = generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24,
            eos_token_id=sorted(engine.chat.end_ids), pad_token_id=engine.chat.pad_id,
        )  # fmt: skip
        assert found[str(i)] == tuple(out[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_policy_says_the_log_probabilities_of_the_model(dtype: torch.dtype) -> None:
    model = tiny_model().to(device=DEVICE, dtype=dtype)  # type: ignore[call-arg]
    as_policy(model, packed=True)
    pairs = some_pairs(6)
    check_policy(model, "sdpa", pairs, pack(pairs), exact=dtype == torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_row_equals_padded_ones(dtype: torch.dtype) -> None:
    model = tiny_model().to(device=DEVICE, dtype=dtype)  # type: ignore[call-arg]
    as_policy(model, packed=True)
    pairs, device = some_pairs(8), torch.device(DEVICE)
    packed = torch.cat(part_sums(model, pack(pairs).to(device)))
    with attention_of(model, "sdpa"):
        padded = torch.cat(part_sums(model, pad(pairs, 0).to(device)))
    assert torch.allclose(packed, padded, atol=1e-3 if dtype == torch.float32 else 0.3)


@pytest.mark.parametrize("name", METHODS)
def test_one_step_in_bfloat16_changes_weights(name: str, tmp_path: Path) -> None:
    for package, users in {"bitsandbytes": ["adamw_8bit"], "peft": ["lora"]}.items():
        if name in users:
            pytest.importorskip(package)
    settings = {"epochs": 1, "lr": 1e-2, "warmup_ratio": 0.0, "max_pairs": 4, "half_precision": None}
    config = TrainConfig.model_validate(CONFIG.model_dump() | settings | METHODS[name])
    before = {key: value.clone() for key, value in tiny_model().state_dict().items()}
    result = train(some_pairs(4), tiny_model().to(DEVICE), tiny_tokenizer(), tmp_path, config, 7)  # type: ignore[arg-type]
    after = weights(result.model_dir)
    assert result.steps == 1
    changed = [key for key, value in after.items() if not torch.equal(value.float(), before[key].float())]
    assert any("self_attn" in key for key in changed)
    assert all(value.isfinite().all() for value in after.values())
