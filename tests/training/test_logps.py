"""Losses, log-probabilities and gradients equal TRL's and those of full logits, however a batch is cut and
laid out.

TRL's own trainers compute loss and gradients on batches of the same token ids, made by their own collators.
Its SimPO, CPO and ORPO build full logits over padded rows. Everything is float32. Differences are measured
relative to each parameter's largest gradient; the figures seen stand beside the tolerances.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from sao.config import LoraConfig, TrainConfig
from sao.models.chat import ChatTokenizer
from sao.training import TokenPair
from sao.training import logps as logps_module
from sao.training.adapters import add_adapter
from sao.training.batches import Batch, pack, pad
from sao.training.logps import token_logps
from sao.training.policy import as_policy
from sao.training.trainer import PreferenceTrainer
from support import tiny_models
from support.checks import known

Grads = dict[str, Tensor]

# Llama ties its head to the embedding, Qwen-3 does not and normalises queries and keys; Gemma-2 caps
# attention scores and logits softly (transformers computes that with eager attention only) and every other
# layer sees 16 tokens.
FAMILIES: dict[str, tuple[Callable[..., str], str]] = {
    "llama": (tiny_models.llama, "sdpa"),
    "qwen3": (tiny_models.qwen3, "sdpa"),
    "gemma2": (tiny_models.gemma2, "eager"),
}
SAME_LOSS = 1e-5  # relative; seen: 3.2e-6 against TRL, 7e-7 between our ways
SAME_GRADS = 2e-5  # of each parameter's largest gradient; seen: 4.3e-6 against TRL, 1.7e-6 between our ways
SAME_LOGPS = 2e-5  # nats, of up to 12 a token; seen: 2.9e-6


def some_pairs() -> list[TokenPair]:
    """Mixed lengths: prompts of 1 to 23 tokens, answers of 1 to 45, some beyond Gemma's window, some far
    shorter."""
    generator = torch.Generator().manual_seed(5)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(10, 260, (n,), generator=generator).tolist())

    lengths = [(23, 31, 45), (1, 20, 3), (7, 1, 18), (12, 40, 9)]
    return [
        TokenPair(id=f"pair-{i}", prompt_ids=ids(p), chosen_ids=ids(w), rejected_ids=ids(r))
        for i, (p, w, r) in enumerate(lengths)
    ]


PAIRS = some_pairs()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("parity")
    return {family: build(root / family) for family, (build, _) in FAMILIES.items()}


def load(folder: str, family: str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation=FAMILIES[family][1]
    )
    return model


def move(model: nn.Module, size: float = 0.02) -> None:
    """Away from the reference, by the same noise for every model of a family."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(size * torch.randn(weight.shape, generator=generator))


def take_grads(model: nn.Module) -> Grads:
    """Gradients of all that is trained; each has some."""
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    assert all(grad is not None and bool(grad.any()) for grad in found.values())
    return {name: grad for name, grad in found.items() if grad is not None}


def furthest(found: Grads, expected: Grads) -> float:
    """The largest difference of any parameter's gradients, relative to that parameter's largest gradient."""
    assert found.keys() == expected.keys()
    return max(float((found[name] - g).abs().max() / g.abs().max()) for name, g in expected.items())


# TRL's side


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss as TRL names and sets it, and as it is here."""

    trainer: str
    theirs: dict[str, Any]
    ours: dict[str, Any]


TOKENS = {"nll_average": "tokens"}
CASES = {
    "simpo": Case(
        "CPO",
        {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": 1.4, "cpo_alpha": 0.0},
        {"loss": "simpo", "beta": 2.5, "gamma": 1.4},
    ),
    "simpo, smoothed, with likelihood": Case(
        "CPO",
        {"loss_type": "simpo", "beta": 10.0, "simpo_gamma": 3.0, "cpo_alpha": 0.5, "label_smoothing": 0.2},
        {"loss": "simpo", "beta": 10.0, "gamma": 3.0, "nll_weight": 0.5, "label_smoothing": 0.2, **TOKENS},
    ),
    "cpo": Case(
        "CPO",
        {"loss_type": "sigmoid", "beta": 0.05, "cpo_alpha": 1.0},
        {"loss": "cpo", "beta": 0.05, **TOKENS},
    ),
    "orpo": Case("ORPO", {"beta": 0.25}, {"loss": "orpo", "beta": 0.25, "nll_on_prompt": True, **TOKENS}),
    "dpo": Case("DPO", {"loss_type": ["sigmoid"], "beta": 0.1}, {"loss": "dpo", "beta": 0.1}),
    "ipo": Case("DPO", {"loss_type": ["ipo"], "beta": 0.4}, {"loss": "ipo", "beta": 0.4}),
    "dpo_norm": Case("DPO", {"loss_type": ["sigmoid_norm"], "beta": 5.0}, {"loss": "dpo_norm", "beta": 5.0}),
    "kto": Case("DPO", {"loss_type": ["apo_zero"], "beta": 0.1}, {"loss": "kto", "beta": 0.1}),
}


@pytest.fixture(scope="session")
def trl() -> SimpleNamespace:
    """TRL's trainers and their settings by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
        from trl.experimental.cpo import CPOConfig, CPOTrainer
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer
        from trl.trainer.dpo_config import DPOConfig
        from trl.trainer.dpo_trainer import DPOTrainer
    return SimpleNamespace(
        CPO=(CPOTrainer, CPOConfig), ORPO=(ORPOTrainer, ORPOConfig), DPO=(DPOTrainer, DPOConfig)
    )


def trl_trainer(trl: SimpleNamespace, case: Case, model: Any, folder: str, family: str, out: Path) -> Any:
    from datasets import Dataset

    kind, arguments = getattr(trl, case.trainer)
    args = arguments(
        output_dir=str(out),
        max_length=None if case.trainer == "DPO" else 4096,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        **case.theirs,
    )
    reference = {"ref_model": load(folder, family)} if case.trainer == "DPO" else {}
    # its tokenising is not compared
    words = Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return kind(model=model, args=args, train_dataset=words, processing_class=tokenizer, **reference)


def trl_batch(trainer: Any, case: Case) -> Any:
    """PAIRS through the trainer's own collator."""
    if case.trainer == "DPO":
        sides = ("prompt_ids", "chosen_ids", "rejected_ids")
        return trainer.data_collator([{side: list(getattr(pair, side)) for side in sides} for pair in PAIRS])
    rows = []
    for pair in PAIRS:
        row: dict[str, Any] = {
            "prompt_input_ids": pair.prompt_ids,
            "prompt_attention_mask": [1] * len(pair.prompt_ids),
        }
        for side, answer in (("chosen", pair.chosen_ids), ("rejected", pair.rejected_ids)):
            ids = [*pair.prompt_ids, *answer]
            row[f"{side}_input_ids"] = ids
            row[f"{side}_attention_mask"] = [1] * len(ids)
            row[f"{side}_labels"] = [-100] * len(pair.prompt_ids) + list(answer)
        rows.append(row)
    return trainer.data_collator(rows)


# Our side


def our_trainer(
    case: Case, model: Any, folder: str, out: Path, attention: str, **config: Any
) -> PreferenceTrainer:
    """The trainer itself: its collator, its likelihood term and, where the loss compares, its reference
    pass."""
    tokenizer = ChatTokenizer(AutoTokenizer.from_pretrained(folder))
    settings = TrainConfig(**case.ours, batch_size=4, micro_batch_size=4, max_length=4096, **config)
    return PreferenceTrainer(PAIRS, model, tokenizer, out, settings, 0, attention, None, False)


def our_loss(trainer: PreferenceTrainer, micro_batches: list[list[int]], model: nn.Module) -> float:
    """The loss of one optimiser step over all pairs; gradients stay in the model."""
    inputs, _ = trainer.get_batch_samples(
        map(trainer.collate, micro_batches), len(micro_batches), torch.device("cpu")
    )
    total = 0.0
    for batch in inputs:
        loss = trainer.compute_loss(model, batch)
        loss.backward()
        total += loss.item()
    return total


class FullLogits(nn.Module):
    """The model as transformers runs it, with all logits of a padded batch, in the place of the policy."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, selected: Tensor, targets: Tensor, **inputs: Any) -> Tensor:
        logits: Tensor = self.model(**inputs).logits.flatten(0, 1)[selected]
        return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


ALL = [[0, 1, 2, 3]]
LORA = TrainConfig(method="lora", lora=LoraConfig(r=4, alpha=8))


def ours(
    case: Case,
    folder: str,
    family: str,
    out: Path,
    micro_batches: list[list[int]] = ALL,
    checkpointing: bool = False,
    adapter: bool = False,
    full_logits: bool = False,
    **config: Any,
) -> tuple[float, Grads]:
    """Loss and gradients of a model that has moved away from the one that was the reference."""
    out.mkdir(exist_ok=True)
    plain: Any = load(folder, family)
    model: Any = add_adapter(plain, LORA, 0) if adapter else plain
    as_policy(plain, config.get("batches", "packed") == "packed")
    trainer = our_trainer(case, model, folder, out, FAMILIES[family][1], **config)
    move(model, 0.1 if adapter else 0.02)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    runs: list[Any] = []
    plain.base_model.layers[0].register_forward_pre_hook(lambda *_: runs.append(1))
    loss = our_loss(trainer, micro_batches, FullLogits(model) if full_logits else model)
    # layers are computed again in backward, or not
    assert len(runs) == len(micro_batches) * (1 + checkpointing)
    return loss, take_grads(model)


# Models


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_equal_trls(
    trl: SimpleNamespace, folders: dict[str, str], family: str, name: str, tmp_path: Path
) -> None:
    case, folder = CASES[name], folders[family]
    model = load(folder, family)
    move(model)
    trainer = trl_trainer(trl, case, model, folder, family, tmp_path)
    expected = trainer.compute_loss(model, trl_batch(trainer, case))
    expected.backward()
    grads = take_grads(model)
    loss, found = ours(case, folder, family, tmp_path)
    assert loss == pytest.approx(expected.item(), rel=SAME_LOSS)
    assert furthest(found, grads) < SAME_GRADS


BATCHES: dict[str, Callable[[], Batch]] = {
    "packed": lambda: pack(PAIRS),
    "prompts not shared": lambda: pack(PAIRS, share_prompt=False),
    "padded": lambda: pad(PAIRS, 0),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_of_each_token_equal_trls(
    trl: SimpleNamespace, folders: dict[str, str], family: str, tmp_path: Path
) -> None:
    from trl.trainer.utils import selective_log_softmax

    folder, expected = folders[family], {}
    with torch.no_grad():
        case = CASES["simpo"]
        model = load(folder, family)
        trainer = trl_trainer(trl, case, model, folder, family, tmp_path)
        rows = trainer.concatenated_inputs(trl_batch(trainer, case), padding_value=trainer.pad_token_id)
        labels = rows["concatenated_labels"][:, 1:]
        inputs = {
            "input_ids": rows["concatenated_input_ids"],
            "attention_mask": rows["concatenated_attention_mask"],
        }
        logps = selective_log_softmax(model(**inputs).logits[:, :-1], labels.clamp(min=0))
        expected["full logits"] = logps[labels != -100]  # all chosen answers, then all rejected ones, as ours
        case = CASES["dpo"]
        trainer = trl_trainer(trl, case, model, folder, family, tmp_path)
        rows = trl_batch(trainer, case)
        labels = rows["input_ids"].masked_fill(rows["completion_mask"] == 0, -100)
        inputs = {name: rows[name] for name in ("input_ids", "attention_mask")}
        logps = trainer.model(**inputs, labels=labels, fused_lm_head=True).log_probs
        expected["fused head"] = logps[labels[:, 1:] != -100]
        for name, make in BATCHES.items():
            policy = load(folder, family)
            as_policy(policy, name != "padded")
            found = policy(**make().model_inputs)
            for head, logps in expected.items():
                assert float((found - logps).abs().max()) < SAME_LOGPS, (name, head)


ONE_BY_ONE = [[2], [0], [3], [1]]
VARIANTS: dict[str, dict[str, Any]] = {
    "prompts not shared": {"share_prompt": False},
    "padded": {"batches": "padded"},
    "padded, full logits": {"batches": "padded", "full_logits": True},
    "small tiles": {"tile": (7, 13)},
    "small tiles, padded": {"tile": (7, 13), "batches": "padded"},
    "checkpointing": {"checkpointing": True},
    "checkpointing, prompts not shared": {"checkpointing": True, "share_prompt": False},
    "checkpointing, padded": {"checkpointing": True, "batches": "padded"},
    "micro-batches": {"micro_batches": [[0, 1], [2, 3]]},
    "micro-batches and a filler": {"micro_batches": [*ONE_BY_ONE, [~0]]},
    "all at once": {"tile": (5, 64), "checkpointing": True, "micro_batches": ONE_BY_ONE},
}


def run_variant(options: dict[str, Any], *where: Any, **more: Any) -> tuple[float, Grads]:
    tile = options.get("tile", logps_module.CPU_TILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logps_module, "CPU_TILE", tile)
        settings = {name: option for name, option in options.items() if name != "tile"} | more
        return ours(*where, **settings)


@pytest.mark.parametrize("family", FAMILIES)
# One that covers prompts and averages over the batch's tokens, one with a reference.
@pytest.mark.parametrize("name", ["orpo", pytest.param("ipo", marks=pytest.mark.slow)])
def test_cutting_and_layout_make_no_difference(
    folders: dict[str, str], family: str, name: str, tmp_path: Path
) -> None:
    where = CASES[name], folders[family], family
    expected, grads = ours(*where, tmp_path / "packed")
    for variant, options in VARIANTS.items():
        loss, found = run_variant(options, *where, tmp_path / variant)
        assert loss == pytest.approx(expected, rel=SAME_LOSS), variant
        assert furthest(found, grads) < SAME_GRADS, variant


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_train_alike_with_full_logits(folders: dict[str, str], family: str, tmp_path: Path) -> None:
    where = CASES["orpo"], folders[family], family
    full = VARIANTS["padded, full logits"]
    expected, grads = ours(*where, tmp_path / "full", adapter=True, **full)
    # The head is frozen. Gradients of A are not all zero (take_grads), so neither is B.
    assert all("lora_" in name for name in grads)
    for variant, options in {"packed": {}, **VARIANTS}.items():
        loss, found = run_variant(options, *where, tmp_path / variant, adapter=True)
        assert loss == pytest.approx(expected, rel=SAME_LOSS), variant
        assert furthest(found, grads) < SAME_GRADS, variant


# The tiled head alone


@dataclasses.dataclass
class Head:
    """Arguments of token_logps."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def random(cls, seed: int, n: int, h: int, v: int, bias: bool = False, **settings: Any) -> Head:
        g = torch.Generator().manual_seed(seed)
        rows = torch.randn(n, h, generator=g), torch.randn(v, h, generator=g)
        return cls(
            *rows,
            torch.randn(v, generator=g) if bias else None,
            torch.randint(v, (n,), generator=g),
            **settings,
        )

    def to(self, dtype: torch.dtype, trained: tuple[bool, bool, bool] = (True, True, True)) -> Head:
        """Fresh leaves in another number format."""
        leaves = [
            None if x is None else x.detach().to(dtype).clone().requires_grad_(needed)
            for x, needed in zip((self.hidden, self.weight, self.bias), trained, strict=True)
        ]
        return dataclasses.replace(self, hidden=known(leaves[0]), weight=known(leaves[1]), bias=leaves[2])

    def tiled(self, tile: tuple[int, int] | None = None) -> Tensor:
        return token_logps(self.hidden, self.weight, self.targets, self.bias, self.scale, self.softcap, tile)

    def full(self) -> Tensor:
        """From all logits, in the format of the arguments."""
        x = self.scale * F.linear(self.hidden, self.weight)
        x = x if self.bias is None else x + self.bias
        z = x if self.softcap is None else self.softcap * torch.tanh(x / self.softcap)
        return z.log_softmax(-1).gather(1, self.targets[:, None])[:, 0]

    def pull(self, logps: Tensor) -> list[Tensor | None]:
        """Gradients of hidden, weight and bias for a loss that weighs tokens unlike."""
        (logps * torch.linspace(-1.0, 2.0, len(logps), dtype=logps.dtype)).sum().backward()
        return [None if x is None else x.grad for x in (self.hidden, self.weight, self.bias)]


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value (or to 1 where all are small)."""
    found, expected = found.detach().double(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1.0))


def mean_error(found: Tensor, expected: Tensor) -> float:
    """The root mean square difference, relative to the root mean square value."""
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm())


TRAINED = [(True, True, True), (True, False, False)]  # the second takes the way of a frozen head


@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 12),
    h=st.integers(1, 9),
    v=st.integers(2, 40),
    tile=st.tuples(st.integers(1, 14), st.integers(1, 42)),
    softcap=st.sampled_from([None, 5.0]),
    scale=st.sampled_from([1.0, 0.25, 3.0]),
    bias=st.booleans(),
    trained=st.one_of(st.sampled_from(TRAINED), st.tuples(st.booleans(), st.booleans(), st.booleans())),
)
@settings(max_examples=150)
def test_tiled_head_equals_full_logits(
    seed: int,
    n: int,
    h: int,
    v: int,
    tile: tuple[int, int],
    softcap: float | None,
    scale: float,
    bias: bool,
    trained: tuple[bool, bool, bool],
) -> None:
    head = Head.random(seed, n, h, v, bias, scale=scale, softcap=softcap)
    mine, exact = head.to(torch.float32, trained), head.to(torch.float64, trained)
    found, expected = mine.tiled(tile), exact.full()
    assert found.dtype == torch.float32
    assert error(found, expected) < 1e-5  # seen, in 3,000 examples: 1.3e-6
    assert found.requires_grad == expected.requires_grad
    if not expected.requires_grad:
        return
    for grad, exact_grad in zip(mine.pull(found), exact.pull(expected), strict=True):
        assert (grad is None) == (exact_grad is None)
        if grad is not None and exact_grad is not None:
            assert error(grad, exact_grad) < 1e-5  # seen: 1.5e-6


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("trained", TRAINED)
def test_tiled_head_with_extreme_logits(softcap: float | None, trained: tuple[bool, bool, bool]) -> None:
    head = Head.random(1, 40, 16, 300, bias=True, softcap=softcap)
    head.hidden *= 1e3  # logits of ten thousands: exp overflows at 89
    mine, exact = head.to(torch.float32, trained), head.to(torch.float64, trained)
    found, expected = mine.tiled((7, 13)), exact.full()
    assert error(found, expected) < 1e-6  # seen: 1e-7
    for grad, exact_grad in zip(mine.pull(found), exact.pull(expected), strict=True):
        if grad is None or exact_grad is None:
            assert grad is exact_grad is None
            continue
        assert grad.isfinite().all()
        # Float32 knows a normaliser of 20,000 only to 0.001 (seen: 2e-5), and the slope 1 − (z/c)² of a
        # saturated cap is a difference of almost equal numbers (seen: 1.4e-4; autograd in float32 has 3e-5).
        assert error(grad, exact_grad) < 1e-3


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize(
    "autocast",
    [False, True],
)
def test_tiled_head_in_bfloat16_sums_in_float32(
    softcap: float | None, trained: tuple[bool, bool, bool], autocast: bool
) -> None:
    head = Head.random(2, 64, 128, 1000, bias=True, scale=0.25, softcap=softcap).to(torch.bfloat16)
    mine = head.to(torch.float32 if autocast else torch.bfloat16, trained)
    plain, exact = head.to(torch.bfloat16, trained), head.to(torch.float64, trained)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = mine.tiled((16, 100))
    rounded, expected = plain.full(), exact.full()
    assert error(found, expected) < 1e-6  # seen: 1e-7
    assert error(rounded, expected) > 1e-3  # seen: 3e-3
    for grad, plain_grad, exact_grad in zip(
        mine.pull(found), plain.pull(rounded), exact.pull(expected), strict=True
    ):
        if grad is None or plain_grad is None or exact_grad is None:
            assert grad is plain_grad is exact_grad is None
            continue
        assert grad.dtype == mine.hidden.dtype
        # Gradients are handed on in bfloat16, so they are rounded once or twice. Seen: 2.3e-3, and 4.3e-3 or
        # more.
        assert mean_error(grad, exact_grad) < 3e-3 < mean_error(plain_grad, exact_grad)
