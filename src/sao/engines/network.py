"""A causal language model for the built-in engine: one forward pass over tokens of many texts side by side.

A pass takes a flat row of tokens [1, tokens]: parts of prompts and next tokens of samples, each at its own
position. The linear layers see them all as one matrix; attention goes by text, each over its own keys and
values (`sao.engines.caches`). So nothing is padded, and what a text's numbers depend on is known: the shapes
of its own attention, and how the matrix products round.

On a CPU those round a row alike whatever the number of rows, as long as it is a multiple of a small number
that follows from the kernels and the threads. `rows_multiple` finds it by trying; where there is none, every
pass gets the same number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AttentionInterface

from sao.engines.caches import ATTENTION, BLOCK, Group, Pass, Text, attend, group_size, rounds_alike
from sao.errors import ModelError
from sao.models.linear import QuickLinear, product, quicken
from sao.models.parts import layer_settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sao.models.chat import ChatTokenizer

NO_WINDOW = 1 << 60
_LARGE_PART = 8 * BLOCK
"""Tokens of a text that attend at once where numbers need not be exact: fewer kernels to start on a GPU."""
_HEAD_ROWS = 1 << 14
"""Rows of the head that are widened to float32 at once."""
_PLAIN_FORWARDS = (torch.nn.Linear.forward, QuickLinear.forward)
_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
_CHECKED_TOKENS, _CHECKED_STEPS, _LONGEST_CHECK = 80, 3, 200

AttentionInterface.register(ATTENTION, attend)


class Network:
    """A causal language model, prepared for passes of about `tokens` tokens. Where exact numbers need passes
    of one size, that is `fixed`."""

    def __init__(
        self, model: PreTrainedModel, chat: ChatTokenizer, tokens: int, fixed: int, exact: bool
    ) -> None:
        """Raises ModelError where the model's layers keep anything but keys and values, or where its numbers
        are others than by a plain forward pass."""
        self.model, self.chat = model, chat
        self.settings = model.config.get_text_config()
        kinds = getattr(self.settings, "layer_types", None)
        window = getattr(self.settings, "sliding_window", None) or NO_WINDOW
        if not kinds:
            kinds = ["full_attention" if window == NO_WINDOW else "sliding_attention"]
            kinds *= int(getattr(self.settings, "num_hidden_layers", 1))
        unknown = {*kinds} - {"full_attention", "sliding_attention"}
        if unknown or getattr(model, "_is_stateful", False):
            raise ModelError(
                f"{type(model).__name__} has layers ({', '.join(sorted(unknown)) or 'state space'}) that "
                "keep more than keys and values, which the built-in engine cannot batch. Take a model of "
                "attention layers only",
                key="architecture",
            )
        self.layer_windows = [window if kind == "sliding_attention" else NO_WINDOW for kind in kinds]
        self.windows = dict(sorted(zip(kinds, self.layer_windows, strict=True)))
        self.context = context_length(self.settings)
        self._vocabulary = int(self.settings.vocab_size)
        ids, plain = self._plain_logits()
        quicken(model)
        multiple = rows_multiple(model, tokens) if exact else 1
        self.tokens = tokens if multiple else fixed
        """Most tokens of a pass."""
        self.multiple = multiple or fixed
        """Every pass gets a multiple of so many tokens, and of so many rows of logits."""
        self._part = BLOCK if exact else _LARGE_PART
        self._by_row = exact and not self._attention_rounds_alike(tokens)
        self._check(ids, plain)

    def work(self) -> Pass:
        """A forward pass to be filled."""
        return Pass(self._part, self._by_row)

    def _attention_rounds_alike(self, rows: int) -> bool:
        if self.model.device.type != "cpu":
            return False
        shapes = {_head_shape(layer) for layer in layer_settings(self.settings)}
        return all(rounds_alike(*shape, self.model.dtype, min(rows, 64)) for shape in shapes)

    def tensor(self, array: NDArray[Any]) -> torch.Tensor:
        """`array` on the model's device."""
        return torch.from_numpy(array).to(self.model.device)

    def forward(self, **inputs: Any) -> torch.Tensor:
        """The model's logits."""
        logits: torch.Tensor = self.model(**inputs).logits
        return logits

    @torch.inference_mode()
    def logits(self, work: Pass, places: list[int], float32: bool = False) -> torch.Tensor:
        """Logits [places, vocabulary] at the `places` of a pass's tokens; the keys and values of all of them
        are kept in the texts' caches. The head gets these places only: logits of all tokens would be the
        largest tensor by far.

        Raises ModelError where a layer does not attend by the pass.
        """
        tokens = -(-len(work) // self.multiple) * self.multiple
        ids, positions = (np.zeros((1, tokens), np.int64) for _ in range(2))
        ids[0, : len(work)], positions[0, : len(work)] = work.ids, work.positions
        wanted = places + [0] * (-len(places) % self.multiple)
        work.prepare(self.model.device, self.model.dtype, self.layer_windows)
        rows = self.tensor(np.array(wanted, np.int64))
        picked = head_input(self.model, lambda hidden: hidden[:, rows])
        with self._own_attention(), float32_head(self.model, float32), picked:
            logits = self.forward(
                input_ids=self.tensor(ids),
                position_ids=self.tensor(positions),
                attention_mask=self.mask_argument(dict.fromkeys(self.windows, work.mask)),
                use_cache=False,
                sao_pass=work,
            )
        if work.attended != len(self.layer_windows):
            raise ModelError(
                f"{type(self.model).__name__}: {work.attended} of its {len(self.layer_windows)} layers "
                "attend by the interface of transformers, which the built-in engine needs. Take engine.name "
                "vllm",
                key="architecture",
            )
        work.finish()
        return logits[0, : len(places)]

    @contextmanager
    def _own_attention(self) -> Iterator[None]:
        """Attention by the texts of a pass."""
        before = self.settings._attn_implementation
        self.settings._attn_implementation = ATTENTION
        try:
            yield
        finally:
            self.settings._attn_implementation = before

    @staticmethod
    def mask_argument(masks: dict[str, torch.Tensor]) -> Any:
        """`masks` as models take them: one tensor, or one for each kind of layer where a model mixes them."""
        return masks if len(masks) > 1 else next(iter(masks.values()))

    @torch.inference_mode()
    def _plain_logits(self) -> tuple[list[int], torch.Tensor]:
        """A text, past the smallest window where that is small, and the logits after its last tokens by a
        plain forward pass."""
        window = min(self.windows.values())
        length = window + 16 if window < _LONGEST_CHECK else _CHECKED_TOKENS
        ids = np.linspace(0, self._vocabulary - 1, length).astype(np.int64)
        logits = plain_forward(self.model, torch.from_numpy(ids)[None])[0]
        return ids.tolist(), logits[-_CHECKED_STEPS:].float()

    @torch.inference_mode()
    def _check(self, ids: list[int], plain: torch.Tensor) -> None:
        """Compare with the logits of a plain forward pass: the text is read after another one, in two parts,
        and its last tokens are taken in a group, beside the other. Raises ModelError where they differ."""
        texts, work = (Text(ids[::-1][: BLOCK // 2]), Text(ids[: 1 - _CHECKED_STEPS])), self.work()
        for text in texts:
            work.read(text, 0, len(ids))
        try:
            ours = [self.logits(work, [len(work) - 1])[0]]
        except (ModelError, torch.OutOfMemoryError):
            raise
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(
                f"{type(self.model).__name__} does not take what the built-in engine gives it ({error}). "
                "Take engine.name vllm",
                key="architecture",
            ) from error
        group = Group(group_size(len(ids)), 2)
        for text in texts:
            group.add(text.layers, len(text.ids))
        for step, token in enumerate(ids[1 - _CHECKED_STEPS :]):
            work = self.work()
            work.rows(group, [token, token], [len(text.ids) + step for text in texts])
            ours.append(self.logits(work, [0, 1])[1])
        if not bool(torch.isfinite(plain).all()):  # its files are checked elsewhere
            return
        apart = float((plain - torch.stack(ours).float()).abs().max())
        if apart > (1e-3 if self.model.dtype == torch.float32 else 0.1) * float(plain.abs().max()):
            raise ModelError(
                f"{type(self.model).__name__}: the built-in engine's logits differ from a plain forward pass "
                f"by {apart:.3g}: it would be wrong for this model. Take engine.name vllm",
                key="architecture",
            )


def plain_forward(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits of `ids` [rows, tokens] by the model as it is. Raises ModelError where its code fails."""
    try:
        logits: torch.Tensor = model(input_ids=ids.to(model.device), use_cache=False).logits
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of the model's own code, and of the packages that hold its weights
        raise ModelError(
            f"{type(model).__name__}: a plain forward pass fails ({type(error).__name__}: {error}). Look at "
            "its config.json, above all at quantization_config",
            key="config.json",
        ) from error
    return logits


@contextmanager
def head_input(model: PreTrainedModel, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """The model whose head gets `change` of the hidden states that it would get."""
    head: torch.nn.Module = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: (change(inputs[0]),))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def float32_head(model: PreTrainedModel, wanted: bool = True) -> Iterator[None]:
    """Logits in float32, also of a model in half precision. In bfloat16 a logit between 16 and 32 is a
    multiple of 1/8, which is more than most differences between two verdicts."""
    head: torch.nn.Module = model.get_output_embeddings()
    is_half = head.weight.dtype in (torch.bfloat16, torch.float16)
    if not wanted or type(head) is not torch.nn.Linear or not is_half or "forward" in vars(head):
        yield
        return
    vars(head)["forward"] = partial(_in_float32, head)
    try:
        yield
    finally:
        del vars(head)["forward"]


def context_length(settings: Any) -> int:
    """The longest text in tokens.

    LongRoPE (Phi-3) turns all texts of a pass by other factors once one of them is longer than its original
    context, so that is the limit there. An index of keys (DeepSeek-V3.2, GLM-MoE-DSA, HY-4) begins to choose
    at `index_topk` tokens, and in transformers 5.19 it may choose keys that come later in the text.
    """
    longest = int(getattr(settings, "max_position_embeddings", 0) or NO_WINDOW)
    longest = min(longest, int(getattr(settings, "index_topk", None) or longest))
    rope = getattr(settings, "rope_parameters", None) or getattr(settings, "rope_scaling", None) or {}
    if isinstance(rope, dict) and rope.get("rope_type", rope.get("type")) == "longrope":
        original = rope.get("original_max_position_embeddings")
        original = original or getattr(settings, "original_max_position_embeddings", None)
        return min(longest, int(original or longest))
    return longest


def _head_shape(settings: Any) -> tuple[int, int, int]:
    """Heads, heads of keys and values, and their size."""
    heads = int(settings.num_attention_heads)
    kv_heads = int(getattr(settings, "num_key_value_heads", None) or heads)
    return heads, kv_heads, int(getattr(settings, "head_dim", None) or settings.hidden_size // heads)


def _in_float32(head: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """The head's output in float32; its weights are widened in blocks, since a copy of all is large."""
    wide = hidden.float()
    logits = wide.new_empty(*hidden.shape[:-1], head.out_features)
    for start in range(0, head.out_features, _HEAD_ROWS):
        block = slice(start, start + _HEAD_ROWS)
        logits[..., block] = product(wide, head.weight[block].float())
    return logits if head.bias is None else logits.add_(head.bias.float())


@torch.inference_mode()
def rows_multiple(model: PreTrainedModel, tokens: int) -> int:
    """The smallest number by which the rows of a matrix product must be divisible for a row to be the same
    to the last bit whatever their number, up to `tokens` rows; 0 where there is none.

    Tried on one layer of each shape with random numbers: kernels that add up in another order differ
    somewhere in so many sums. A model with matrices in other layers than torch's linear ones gives 0, but
    for mixtures of experts, whose samples differ in any case by how many rows an expert happens to get.
    """
    others: set[int] = set()
    layers: dict[object, tuple[Callable[[torch.Tensor], torch.Tensor], int, torch.dtype]] = {}
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and type(module).forward in _PLAIN_FORWARDS:
            dtype, size = module.weight.dtype, module.in_features
            layers.setdefault((type(module), dtype, size, module.out_features), (module, size, dtype))
        elif not isinstance(module, torch.nn.Embedding):
            others |= {weight.ndim for weight in module.parameters(recurse=False)}
    if 2 in others and 3 not in others:
        return 0
    head = model.get_output_embeddings()
    if type(head) is torch.nn.Linear and head.weight.dtype != torch.float32:
        layers["float32 head"] = (partial(_in_float32, head), head.in_features, head.weight.dtype)
    generator = torch.Generator().manual_seed(0)
    multiple = 0
    for layer, size, dtype in layers.values():
        rows = torch.randn((tokens, size), generator=generator).to(device=model.device, dtype=dtype)
        whole = layer(rows)
        while not multiple or not _is_same(layer, rows, whole, multiple):
            multiple = next((n for n in _MULTIPLES if n > multiple), tokens)
            if multiple >= tokens:
                return 0
    return multiple


def _is_same(
    layer: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor, whole: torch.Tensor, multiple: int
) -> bool:
    """Whether a number of rows divisible by `multiple` gives the same outputs as all of them: small numbers,
    and larger ones about a fifth apart."""
    tried, n = set(), multiple
    while n < len(rows):
        tried.add(n)
        n = max(n + multiple, int(n * 1.2) // multiple * multiple)
    return all(bool(torch.equal(layer(rows[:n].contiguous()), whole[:n])) for n in sorted(tried))
