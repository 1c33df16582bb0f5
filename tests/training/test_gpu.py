"""What only a GPU can show; skipped where there is none."""

from __future__ import annotations

import pytest
import torch

from sao.training.attention import packed_attention
from sao.training.batches import pack
from sao.training.logps import token_logps
from support.tiny_training import some_pairs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("share", [True, False])
def test_the_kernel_for_all_segments_equals_one_by_one(window: int | None, share: bool) -> None:
    segments = pack(some_pairs(6), share_prompt=share).to(torch.device("cuda")).segments
    assert segments is not None
    tokens = sum(segments.queries)
    torch.manual_seed(0)
    shapes = [(1, 8, tokens, 64), (1, 2, tokens, 64), (1, 2, tokens, 64)]
    exact = [torch.randn(shape, device="cuda", requires_grad=True) for shape in shapes]
    half = [x.detach().bfloat16().requires_grad_() for x in exact]
    found = []
    for q, k, v in (exact, half):
        out, _ = packed_attention(
            torch.nn.Module(), q, k, v, None, scaling=0.125, sliding_window=window, segments=segments
        )
        out.float().square().sum().backward()
        found.append([out.float(), q.grad, k.grad, v.grad])
    for a, b in zip(*found, strict=True):
        assert a is not None
        assert b is not None
        assert (a - b.float()).norm() < 0.02 * a.norm()


@pytest.mark.parametrize("frozen", [True, False])
def test_the_tiled_head_in_bfloat16_sums_in_float32(frozen: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(300, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = (torch.randn(5000, 256, device="cuda") * 0.1).bfloat16().requires_grad_(not frozen)
    targets = torch.randint(0, 5000, (300,), device="cuda")
    found = token_logps(hidden, weight, targets, tile=(128, 1024))
    exact = hidden.double() @ weight.double().t()
    expected = exact.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert (found - expected).abs().max() < 1e-3
    (gradient,) = torch.autograd.grad(found.sum(), hidden)
    (wanted,) = torch.autograd.grad(expected.sum(), hidden)
    assert (gradient.double() - wanted.double()).norm() < 0.02 * wanted.double().norm()
