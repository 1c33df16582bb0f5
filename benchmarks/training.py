"""Time and memory of preference training (SimPO, forward + backward) against TRL's CPOTrainer, plain and with
Liger.

    PYTHONPATH=src python benchmarks/training.py --threads 2

TRL and Liger are installed into build/peers where they are missing. `--batches` times `--pairs` pairs are a
fair sample of 512: these, sorted by length, make groups, and one group is drawn from each of as many equal
parts. All sides train on the same tokens and the same random weights, `--pairs` a forward pass, and must
agree on loss and gradient or the script fails.

    sao                 packed rows, shared prompt, the passes of a step alike in tokens (as
    sao.training.batches does)
    trl                 TRL as it comes: random order, padded to the longest of the batch, its own
    compute_loss
    trl_grouped         the same, with pairs of like length in a batch
    trl_liger           TRL's collated batch with Liger's fused SimPO loss, compiled where that works; on CUDA
    also Liger's
    trl_liger_grouped   layers. Gemma-2 there keeps TRL's loss: Liger's has no soft-capping

A ratio is ours divided by theirs: `time_ratio` and `memory_ratio` against trl, `*_best` against the best TRL
variant. Every measurement is a fresh process. Time: all batches, the sides taking turns. Memory: the peak
over each side's largest batch above weights and gradients, once, with malloc set for all alike to give freed
memory back. Where a TRL variant runs out of memory it is tried again with half the pairs a pass
(`pairs_per_pass`), and ours is measured with as many beside (`megabytes_alike`): memory is compared at equal
pairs a pass. Among the best for memory such a variant counts only if none runs whole. A variant that cannot
run even with one pair is left out, and the next one in the list above stands in for trl. The last line
printed is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import itertools
import json
import math
import os
import platform
import random
import re
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from sao.config import TrainConfig
from sao.training.adapters import add_adapter
from sao.training.batches import EpochOrder, MicroBatches, TokenPair, pack
from sao.training.losses import simpo_loss
from sao.training.policy import as_policy, part_sums

BUILD = Path(__file__).parents[1] / "build"
PEERS = {"trl": "1.16.0", "liger-kernel": "0.8.5"}
VARIANTS = ("sao", "trl", "trl_grouped", "trl_liger", "trl_liger_grouped")
POOL, BETA, GAMMA, PAD, EOS, SEED = 512, 10.0, 3.0, 0, 1, 0
STEADY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def shape(name: str, vocabulary: int) -> PreTrainedConfig:
    """The architecture; `vocabulary` counts only for the tiny one."""
    if name == "gemma-2-9b":
        return Gemma2Config(vocab_size=256000, hidden_size=3584, intermediate_size=14336,
        num_hidden_layers=42,
            num_attention_heads=16, num_key_value_heads=8, head_dim=256, query_pre_attn_scalar=256,
            sliding_window=4096,
            pad_token_id=PAD, eos_token_id=EOS, bos_token_id=None)  # fmt: skip
    sizes = (256, 768, 6, 8, 4) if name == "tiny" else (4096, 14336, 32, 32, 8)
    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    return LlamaConfig(vocab_size=vocabulary if name == "tiny" else 128256, pad_token_id=PAD,
    eos_token_id=EOS,
        bos_token_id=None, tie_word_embeddings=False, max_position_embeddings=8192, **dict(zip(names,
        sizes)))  # fmt: skip


def make_pair(rng: random.Random, vocabulary: int, prompt: int, chosen: int, rejected: int) -> TokenPair:
    """Random tokens; the answers end with the end of turn."""
    p, w, rest = (
        tuple(rng.randrange(2, vocabulary) for _ in range(n)) for n in (prompt, chosen - 1, rejected - 1)
    )
    return TokenPair(id=str(rng.random()), prompt_ids=p, chosen_ids=(*w, EOS), rejected_ids=(*rest, EOS))


def longest(pair: TokenPair) -> int:
    """Tokens of the pair's longer row."""
    return len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))


def draw(options: argparse.Namespace) -> list[TokenPair]:
    """The pairs that all sides train on."""
    rng = random.Random(SEED)

    def answer() -> int:
        return max(2, min(1024, round(rng.lognormvariate(math.log(250), 0.6))))

    pool = [make_pair(rng, options.vocabulary, rng.randint(30, 90), answer(), answer()) for _ in range(POOL)]
    pool.sort(key=longest)
    groups = [pool[i : i + options.pairs] for i in range(0, POOL - options.pairs + 1, options.pairs)]
    edges = [len(groups) * i // options.batches for i in range(options.batches + 1)]
    return [pair for a, b in itertools.pairwise(edges) for pair in groups[rng.randrange(a, b)]]


def build_model(options: argparse.Namespace, attention: str) -> PreTrainedModel:
    """Random weights, the same for every side: float32 on a CPU, bfloat16 on CUDA."""
    torch.manual_seed(SEED)
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    with torch.device(options.device):
        config = shape(options.shape, options.vocabulary)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    model.train()
    if options.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


class Ours:
    """This package's step, without the optimiser."""

    def __init__(self, options: argparse.Namespace) -> None:
        base = build_model(options, "eager" if options.shape == "gemma-2-9b" else "sdpa")
        settings = TrainConfig(method="lora", weights="bfloat16")
        self.model: Any = base if options.method == "full" else add_adapter(base, settings, SEED)
        as_policy(base, packed=True)
        self.device = torch.device(options.device)
        self.fused: Any = None

    def deal(self, pairs: list[TokenPair], size: int) -> list[list[TokenPair]]:
        order = EpochOrder([len(pair) for pair in pairs], SEED, len(pairs))
        return [[pairs[i] for i in rows] for rows in MicroBatches(order, len(pairs), size)]

    def size(self, pairs: list[TokenPair]) -> int:
        """Tokens that go through the model."""
        return sum(map(len, pairs))

    def read(self, pairs: list[TokenPair]) -> list[TokenPair]:
        return pairs

    def loss(self, pairs: list[TokenPair]) -> Tensor:
        batch = pack(pairs).to(self.device)
        lengths = torch.tensor(batch.lengths, device=self.device).chunk(2)
        w, l = (s / n for s, n in zip(part_sums(self.model, batch), lengths))  # noqa: E741
        return simpo_loss(w, l, BETA, GAMMA).mean()


class Theirs:
    """TRL's CPOTrainer with its tokenising, its collator and its loss, or Liger's loss on its batches."""

    def __init__(self, options: argparse.Namespace) -> None:
        from datasets import Dataset
        from peft import LoraConfig
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        cuda, liger, lora = options.device == "cuda", "liger" in options.variant, TrainConfig().lora
        self.grouped = options.variant.endswith("grouped")
        config = CPOConfig(output_dir=str(BUILD / "trl"), loss_type="simpo", beta=BETA, simpo_gamma=GAMMA,
        cpo_alpha=0.0,
            max_length=10**9, bf16=False, use_cpu=not cuda, gradient_checkpointing=False, report_to="none",
            remove_unused_columns=False, use_liger_kernel=liger and cuda)  # fmt: skip
        adapter = LoraConfig(
            r=lora.r, lora_alpha=lora.alpha, target_modules=lora.targets, task_type="CAUSAL_LM"
        )
        model = build_model(options, options.peer_attention)
        self.base, self.head = model.base_model, model.get_output_embeddings()
        row = text_of(make_pair(random.Random(SEED), options.vocabulary, 2, 2, 2))
        self.trainer = CPOTrainer(model, config, train_dataset=Dataset.from_list([row]),
            peft_config=adapter if options.method == "lora" else None,
            processing_class=word_tokenizer(options.vocabulary))  # fmt: skip
        self.model = self.trainer.model
        self.fused: Any = None
        if liger and options.shape != "gemma-2-9b":
            from liger_kernel.chunked_loss import LigerFusedLinearSimPOLoss

            self.fused = LigerFusedLinearSimPOLoss(
                beta=BETA, gamma=GAMMA, compute_nll_loss=False, compiled=True
            )

    def deal(self, pairs: list[TokenPair], size: int) -> list[list[TokenPair]]:
        pairs = sorted(pairs, key=longest) if self.grouped else random.Random(SEED).sample(pairs, len(pairs))
        return [pairs[i : i + size] for i in range(0, len(pairs), size)]

    def size(self, pairs: list[TokenPair]) -> int:
        """Tokens that go through the model, padding included."""
        return 2 * len(pairs) * max(map(longest, pairs))

    def read(self, pairs: list[TokenPair]) -> list[dict[str, Any]]:
        rows = [self.trainer.tokenize_row(text_of(pair)) for pair in pairs]
        for pair, row in zip(pairs, rows):
            if row["rejected_input_ids"] != [*pair.prompt_ids, *pair.rejected_ids]:
                raise AssertionError("TRL's tokens are not ours")
        return rows

    def loss(self, rows: list[dict[str, Any]]) -> Tensor:
        batch = self.trainer._prepare_inputs(self.trainer.data_collator(rows))
        if self.fused is None:
            return self.trainer.compute_loss(self.model, batch)
        both = self.trainer.concatenated_inputs(
            batch, padding_value=PAD, device=self.trainer.accelerator.device
        )
        ids, mask = both["concatenated_input_ids"], both["concatenated_attention_mask"]
        hidden = self.base(ids, attention_mask=mask, use_cache=False)[0]
        return self.fused(self.head.weight, hidden[:, :-1], both["concatenated_labels"][:, 1:])[0]


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer for which token 17 is the word 17, so that TRL sees the very tokens that we see."""
    words = {"<pad>": PAD, "<eos>": EOS} | {str(i): i for i in range(2, vocabulary)}
    plain = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>")


def text_of(pair: TokenPair) -> dict[str, str]:
    """The pair as TRL takes it; TRL adds the end of turn."""
    parts = {"prompt": pair.prompt_ids, "chosen": pair.chosen_ids[:-1], "rejected": pair.rejected_ids[:-1]}
    return {name: " ".join(map(str, ids)) + " " * (name == "prompt") for name, ids in parts.items()}


# One measurement, in a process of its own


def child(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one variant."""
    torch.set_num_threads(options.threads)
    side: Any = Ours(options) if options.variant == "sao" else Theirs(options)
    # As many pairs as will be measured (Liger compiles for their number), but tiny ones: gradients and
    # buffers come to be.
    warm = [make_pair(random.Random(i), options.vocabulary, 4, 4, 5) for i in range(options.pairs_per_pass)]
    try:
        step(side, options, side.read(warm))
    except Exception:
        if side.fused is None:
            raise
        side.fused.compiled = False  # no compiler here
        step(side, options, side.read(warm))
    if options.memory_limit and options.device == "cpu":
        # What was asked for but never touched does not count. A little less where memory is measured: what
        # fits there also fits where time is.
        limit = options.memory_limit * 1e3 * (0.97 if options.measure == "memory" else 1)
        limit = int((limit + status_mb("VmData") - status_mb("RssAnon")) * 1e6)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    if options.measure == "longest":
        return {"longest": longest_that_fits(side, options)}
    batches = side.deal(draw(options), options.pairs_per_pass)
    return (measure_memory if options.measure == "memory" else measure_time)(side, options, batches)


def step(side: Any, options: argparse.Namespace, rows: list[Any]) -> float:
    """Forward and backward; adapters under autocast, as they are trained on CUDA."""
    with torch.autocast(
        options.device, torch.bfloat16, enabled=options.method == "lora" and options.device == "cuda"
    ):
        loss = side.loss(rows)
    loss.backward()
    return loss.item()


def status_mb(key: str) -> float:
    """A line of this process's status, MB."""
    return int(re.findall(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024 / 1e6


def measure_memory(side: Any, options: argparse.Namespace, batches: list[list[TokenPair]]) -> dict[str, Any]:
    """The peak over the largest batch, above what is there before, and in all."""
    rows, cuda = side.read(max(batches, key=side.size)), options.device == "cuda"
    gc.collect()
    before = torch.cuda.memory_allocated() / 1e6 if cuda else status_mb("VmRSS")
    # resets VmHWM
    torch.cuda.reset_peak_memory_stats() if cuda else Path("/proc/self/clear_refs").write_text("5")
    step(side, options, rows)
    peak = torch.cuda.max_memory_allocated() / 1e6 if cuda else status_mb("VmHWM")
    return {
        "megabytes": peak - before,
        "peak_gb": peak / 1e3,
        "compiled": getattr(side.fused, "compiled", False),
    }


def measure_time(side: Any, options: argparse.Namespace, batches: list[list[TokenPair]]) -> dict[str, Any]:
    """Seconds for all batches, with the loss and the gradient's norm."""
    work = [side.read(pairs) for pairs in batches]
    wait = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    for rows in work if options.device == "cuda" else []:  # kernels are chosen and compiled outside the clock
        step(side, options, rows)
    weights = [p for p in side.model.parameters() if p.grad is not None]
    for p in weights:
        p.grad.zero_()
    wait()
    start = time.perf_counter()
    losses = [step(side, options, rows) for rows in work]
    wait()
    seconds = time.perf_counter() - start
    settings = side.model.config.get_text_config()
    parameters = sum(p.numel() for p in side.model.parameters())
    embedding = 0 if settings.tie_word_embeddings else settings.vocab_size * settings.hidden_size
    return {
        "seconds": seconds,
        "loss": statistics.fmean(losses),
        "gradient": float(torch.stack([p.grad.float().norm() for p in weights]).norm()) / len(batches),
        "tokens": sum(len(pair) for pairs in batches for pair in pairs),
        "processed": sum(map(side.size, batches)),
        "parameters": parameters,
        "multiplied": parameters - embedding,
    }


def longest_that_fits(side: Any, options: argparse.Namespace) -> int:
    """Longest prompt plus answer of a single pair, to 256 tokens."""

    def fits(blocks: int) -> bool:
        answer = 256 * blocks - 64
        rows = side.read([make_pair(random.Random(SEED), options.vocabulary, 64, answer, answer)])
        try:
            return math.isfinite(step(side, options, rows))
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            return False
        finally:
            gc.collect()
            torch.cuda.empty_cache()

    good, bad = 0, 1
    while bad <= 1024 and fits(bad):
        good, bad = bad, 2 * bad
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return 256 * good


def out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return (
        isinstance(error, (torch.OutOfMemoryError, MemoryError))
        or "allocate memory" in text
        or "bad_alloc" in text
    )


# All measurements


def call(options: argparse.Namespace, variant: str, measure: str, size: int) -> dict[str, Any]:
    """What a fresh process measures, or {"error": why not}."""
    passed = {**vars(options), "variant": variant, "measure": measure, "pairs_per_pass": size}
    if (
        not options.memory_limit and options.device == "cpu"
    ):  # better refused than the whole machine without memory
        available = int(re.findall(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[0])
        passed["memory_limit"] = max(1.0, available * 1024 / 1e9 - 0.8)
    env = os.environ | {"OMP_NUM_THREADS": str(options.threads),
    "TORCHINDUCTOR_CACHE_DIR": str(BUILD / "inductor"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        **(STEADY if measure == "memory" else {})}  # fmt: skip
    command = [sys.executable, __file__, "--child", json.dumps(passed)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode in (-6, -9, -11):
        result = {"error": "out of memory"}
    elif done.returncode or not done.stdout:
        result = {"error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
        print(done.stderr[-3000:], file=sys.stderr)
    else:
        result = json.loads(done.stdout.splitlines()[-1])
    shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()}
    print(
        f"{options.vocabulary:>7} {variant}, {size} pairs a pass, {measure}: {shown}",
        file=sys.stderr,
        flush=True,
    )
    return result


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """All variants at one vocabulary: memory first, which finds out how many pairs go into a pass."""
    found: dict[str, dict[str, Any]] = {}
    refused: dict[str, list[int]] = {}
    for variant in VARIANTS:
        size = options.pairs
        while "error" in (result := call(options, variant, "memory", size)):
            if result["error"] != "out of memory":
                break
            refused.setdefault(variant, []).append(size)
            if size == 1 or variant == "sao":
                break
            size //= 2
        found[variant] = result | {"size": size, "turns": []}
    smaller = {result["size"] for result in found.values()} - {options.pairs}
    alike = {size: call(options, "sao", "memory", size).get("megabytes") for size in smaller}
    for turn in range(options.repetitions):
        for variant in sorted(VARIANTS, reverse=bool(turn % 2)):
            if "error" not in found[variant]:
                result = call(options, variant, "time", found[variant]["size"])
                found[variant]["turns"].append(result)
                found[variant].update({"error": result["error"]} if "error" in result else {})
    errors = {variant: result["error"] for variant, result in found.items() if "error" in result}
    if "sao" in errors or len(errors) == len(VARIANTS) - 1:
        return {"errors": errors, "out_of_memory": refused}
    good = {variant: result for variant, result in found.items() if variant not in errors}
    check(options, good)
    summary = summarise(options, good, alike) | {"out_of_memory": refused, "errors": errors}
    for variant, result in good.items() if options.device == "cuda" else ():
        gpu = on_gpu(options, result["turns"], result["peak_gb"])
        summary[variant] = gpu | {"longest": call(options, variant, "longest", 1).get("longest")}
    return summary


def check(options: argparse.Namespace, good: dict[str, dict[str, Any]]) -> None:
    """All sides must have computed the same. TRL sums log-probabilities in bfloat16 on CUDA, hence little
    there."""
    exact = options.device == "cpu"
    ours = good["sao"]["turns"][0]
    for variant, result in good.items():
        for turn in result["turns"]:
            for key, tolerance in {
                "loss": 1e-4 if exact else 0.1,
                "gradient": 1e-3 if exact else math.inf,
            }.items():
                if not abs(turn[key] / ours[key] - 1) <= tolerance:
                    raise SystemExit(f"{variant}: {key} {turn[key]}, but sao has {ours[key]}")


def summarise(
    options: argparse.Namespace, good: dict[str, dict[str, Any]], alike: dict[int, float | None]
) -> dict[str, Any]:
    """Ratios and figures; `alike` is our memory at the smaller numbers of pairs a pass with which some peer
    ran."""
    seconds = {variant: [turn["seconds"] for turn in result["turns"]] for variant, result in good.items()}
    medians = {variant: round(statistics.median(values), 3) for variant, values in seconds.items()}
    megabytes = {variant: round(result["megabytes"]) for variant, result in good.items()}
    peers = [variant for variant in VARIANTS[1:] if variant in good]
    whole = [variant for variant in peers if good[variant]["size"] == options.pairs] or peers
    fastest, smallest = min(peers, key=medians.__getitem__), min(whole, key=megabytes.__getitem__)
    summary: dict[str, Any] = {"against": peers[0], "best_time": fastest, "best_memory": smallest}
    for suffix, peer in (("", peers[0]), ("_best", fastest)):
        ratios = [a / b for a, b in zip(seconds["sao"], seconds[peer])]
        summary[f"time_ratio{suffix}"] = round(statistics.median(ratios), 3)
        summary[f"time_ratio{suffix}_spread"] = [round(min(ratios), 3), round(max(ratios), 3)]
    for suffix, peer in (("", peers[0]), ("_best", smallest)):
        ours = alike.get(good[peer]["size"]) or megabytes["sao"]
        summary[f"memory_ratio{suffix}"] = round(ours / max(1, megabytes[peer]), 3)
    first = {variant: result["turns"][0] for variant, result in good.items()}
    return summary | {
        "seconds": medians,
        "seconds_spread": {variant: [round(min(v), 3), round(max(v), 3)] for variant, v in seconds.items()},
        "megabytes": megabytes,
        "megabytes_alike": {size: round(mb) for size, mb in alike.items() if mb},
        "pairs_per_pass": {variant: result["size"] for variant, result in good.items()},
        "processed_tokens": {variant: turn["processed"] for variant, turn in first.items()},
        "tokens": first["sao"]["tokens"],
        "loss": {variant: turn["loss"] for variant, turn in first.items()},
        "liger_compiled": any(result["compiled"] for result in good.values()),
        "parameters": first["sao"]["parameters"],
    }


def on_gpu(options: argparse.Namespace, turns: list[dict[str, Any]], peak_gb: float) -> dict[str, Any]:
    """Rates on the tokens that need be computed (a prompt once). A token takes 6 operations a weight, 4 if it
    is frozen."""
    rate = statistics.median(turn["tokens"] / turn["seconds"] for turn in turns)
    operations = (6 if options.method == "full" else 4) * turns[0]["multiplied"]
    share = operations * rate / (options.peak_tflops * 1e12)
    return {"tokens_per_second": round(rate), "peak_gb": round(peak_gb, 2), "share_of_peak": round(share, 3)}


def table(name: str, summary: dict[str, Any]) -> None:
    print(f"\n{name:24}{'seconds':>9}{'MB':>9}{'pairs a pass':>14}{'tokens':>9}", file=sys.stderr)
    columns = [summary[key] for key in ("seconds", "megabytes", "pairs_per_pass", "processed_tokens")]
    for variant in columns[0]:
        s, mb, size, tokens = (column[variant] for column in columns)
        print(f"  {variant:22}{s:9.2f}{mb:9}{size:14}{tokens:9}", file=sys.stderr)
    for what in ("time", "memory"):
        ratio, best = summary[f"{what}_ratio"], summary[f"{what}_ratio_best"]
        peer = summary[f"best_{what}"]
        print(f"{what}: {ratio} of {summary['against']}, {best} of the best ({peer})", file=sys.stderr)


def install_peers() -> None:
    """Put TRL and Liger where this script finds them, behind the environment's own packages, which stay as
    they are."""
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--target", str(BUILD / "peers")]
    missing = [f"{name}=={wanted}" for name, wanted in PEERS.items() if not found_version(name)]
    if missing:
        subprocess.run([*pip, "--no-deps", *missing], check=True, stdout=sys.stderr)
    needed = [name for name in ("datasets", "peft") if not found_version(name)]
    if needed:
        subprocess.run(
            [*pip, *(["--no-deps"] if needed == ["peft"] else []), *needed], check=True, stdout=sys.stderr
        )
    importlib.invalidate_caches()
    for name, wanted in PEERS.items():
        if found_version(name) != wanted:
            print(f"{name} {found_version(name)} is installed and used, not {wanted}", file=sys.stderr)


def found_version(name: str) -> str | None:
    with contextlib.suppress(PackageNotFoundError):
        return version(name)
    return None


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--vocabularies", type=int, nargs="+", default=[32000, 256000], help="of the tiny shape"
    )
    parser.add_argument("--pairs", type=int, default=8, help="in a forward pass; a power of two")
    parser.add_argument("--batches", type=int, default=2, help="times --pairs: what is measured")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--shape", choices=["tiny", "llama-3-8b", "gemma-2-9b"], default="tiny")
    parser.add_argument("--method", choices=["full", "lora"], default="full")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing on all sides")
    parser.add_argument(
        "--peer-attention", default="", help="TRL's attention (default: sdpa; for Gemma-2 eager)"
    )
    parser.add_argument(
        "--peak-tflops", type=float, default=989.0, help="of the GPU in bfloat16 (H100, H200: 989)"
    )
    parser.add_argument(
        "--memory-limit", type=float, default=0.0, help="GB for a process on a CPU; 0: what is available"
    )
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.peer_attention = options.peer_attention or ("eager" if options.shape == "gemma-2-9b" else "sdpa")
    if options.pairs & (options.pairs - 1):
        parser.error("--pairs must be a power of two: passes are halved where memory is too small")
    if options.shape != "tiny":
        options.vocabularies = [shape(options.shape, 0).vocab_size]
    if options.device == "cpu" and (options.shape != "tiny" or options.method != "full"):
        parser.error("--shape and --method lora need --device cuda")
    return options


def main() -> None:
    sys.path.append(str(BUILD / "peers"))
    options = parse()
    if options.child:
        try:
            print(json.dumps(child(argparse.Namespace(**json.loads(options.child)))))
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            print(json.dumps({"error": "out of memory"}))
        return
    install_peers()
    result: dict[str, Any] = {"benchmark": "training"}
    settings = {key: value for key, value in vars(options).items() if key != "child"}
    for vocabulary in options.vocabularies:
        options.vocabulary = vocabulary
        name = f"vocab_{vocabulary // 1000}k" if options.shape == "tiny" else options.shape
        result[name] = compare(options)
        if "seconds" in result[name]:
            table(name, result[name])
    machine = {"load_average": [round(value, 2) for value in os.getloadavg()], "cpus": os.cpu_count()}
    versions = {name: found_version(name) for name in ("torch", "transformers", *PEERS)}
    versions["python"] = platform.python_version()
    print(json.dumps(result | settings | machine | {"machine": platform.machine(), "versions": versions}))


if __name__ == "__main__":
    main()
