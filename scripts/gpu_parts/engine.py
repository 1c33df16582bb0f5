"""The built-in engine against plain batched `generate`."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from gpu_parts.setting import SEED, Setting, build, guarded, report
from sao.config import EngineConfig
from sao.engines import Request, Sample, Sampling
from sao.engines.continuous import Continuous
from sao.engines.transformers import TransformersEngine
from sao.records import Message
from support import tiny_models


def engine_part(setting: Setting) -> None:
    """Tokens a second of the built-in engine and of plain batched `generate`: answers of like length, and of
    unlike length, where a plain batch goes on until its longest is written."""
    rows, tokens = (4, 12) if setting.small else (128, 128)
    dtype = torch.float32 if setting.small else torch.bfloat16
    config = EngineConfig(name="transformers", device=setting.device.type, slots=rows)
    with tempfile.TemporaryDirectory() as folder:  # its tokenizer; the weights are replaced
        engine = TransformersEngine(tiny_models.llama(Path(folder), max_position_embeddings=8192), config)
    plain = build("llama-1b", None, dtype, setting).eval()
    own = build("llama-1b", None, dtype, setting).eval()
    engine.batches = Continuous(own, engine.chat, rows, exact=False)
    found: dict[str, Any] = {"gpu": setting.gpu, "parameters": plain.num_parameters(), "rows": rows}
    for name in ("even", "uneven"):
        if setting.left < (2 if setting.small else 15):
            found[name] = {"skipped": f"{setting.left:.0f} s are left"}
        else:
            work = requests(rows // 2, tokens, name == "uneven")
            found[name] = guarded(lambda w=work: compare_engines(engine, plain, w, rows, setting))
        report(found)
    errors = [f"{name}: {found[name]['error']}" for name in ("even", "uneven") if "error" in found[name]]
    if errors:
        report(found | {"error": "; ".join(errors)})


def requests(prompts: int, tokens: int, uneven: bool) -> list[Request]:
    """Prompts of unlike length with two samples each, of `tokens` tokens; uneven: of a tenth to two times as
    many."""
    rng, found = random.Random(SEED), []
    for i in range(prompts):
        messages = (Message("user", "hello world " * rng.randint(1, 30) + str(i)),)
        most = round(tokens * rng.uniform(0.1, 2)) if uneven else tokens
        samples = (Sample(f"{i}.0", 2 * i), Sample(f"{i}.1", 2 * i + 1))
        found.append(Request(messages, samples, Sampling(max(1, most), 1.0)))
    return found


def compare_engines(
    engine: TransformersEngine,
    plain: PreTrainedModel,
    work: list[Request],
    rows: int,
    setting: Setting,
) -> dict[str, Any]:
    """Both sides on the same requests, after a short run of each for kernels to be loaded."""
    ours, theirs = (lambda w: write_ours(engine, w)), (lambda w: write_plain(engine, plain, w, rows))
    found: dict[str, Any] = {}
    for name, write in (("sao", ours), ("generate", theirs)):
        write(work[:2])
        setting.wait()
        start = time.perf_counter()
        tokens = write(work)
        setting.wait()
        found[name] = {"tokens": tokens, "tokens_per_s": tokens / (time.perf_counter() - start)}
    return found | {"ratio": found["sao"]["tokens_per_s"] / found["generate"]["tokens_per_s"]}


def write_ours(engine: TransformersEngine, work: list[Request]) -> int:
    """Tokens written by the built-in engine, which knows none of the prompts."""
    engine.batches.forget()
    return sum(len(done.token_ids or ()) for done in engine.generate(iter(work)))


def write_plain(engine: TransformersEngine, model: PreTrainedModel, work: list[Request], batch: int) -> int:
    """Tokens that were asked for, by `generate` in batches sorted by length and padded on the left."""
    chat, written = engine.chat, 0
    wanted = [(chat.prompt_ids(r.messages), r.sampling.max_tokens) for r in work for _ in r.samples]
    wanted.sort(key=lambda one: len(one[0]))
    for start in range(0, len(wanted), batch):
        some = wanted[start : start + batch]
        width = max(len(ids) for ids, _ in some)
        ids = torch.tensor([[chat.pad_id] * (width - len(ids)) + ids for ids, _ in some])
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids, _ in some])
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device), do_sample=True,
                max_new_tokens=max(most for _, most in some), temperature=1.0, top_k=0,
                eos_token_id=sorted(chat.end_ids), pad_token_id=chat.pad_id,
            )  # fmt: skip
        for row, (_, most) in zip(out[:, width:].tolist(), some, strict=True):
            row = row[:most]
            ended = [i + 1 for i, token in enumerate(row) if token in chat.end_ids]
            row = row[: ended[0] if ended else len(row)]
            chat.decode(row)
            written += len(row)
    return written
