"""Linear layers by oneDNN: the values and gradients of plain ones."""

from __future__ import annotations

import pytest
import torch

from sao.models.linear import QuickLinear, has_onednn, product


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [300, 70])  # above and below the size from which on oneDNN is used
def test_values_and_gradients_of_a_linear_layer(outputs: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(300, outputs, bias=bias)
    plain = torch.nn.Linear(300, outputs, bias=bias, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    layer.__class__ = QuickLinear
    rows, upstream = torch.randn(2, 9, 300), torch.randn(2, 9, outputs)
    ours, exact = rows.clone().requires_grad_(), rows.double().requires_grad_()
    found, expected = layer(ours), plain(exact)
    assert (found - expected).abs().max() < 1e-5
    found.backward(upstream)
    expected.backward(upstream.double())
    pairs = [(ours.grad, exact.grad)]
    pairs += [(a.grad, b.grad) for a, b in zip(layer.parameters(), plain.parameters(), strict=True)]
    for one, other in pairs:
        assert one is not None
        assert other is not None
        assert (one - other).abs().max() < 1e-4
    with torch.inference_mode():
        assert torch.equal(layer(rows), product(rows, layer.weight, layer.bias))


def test_frozen_weights_pass_gradients_on_and_autocast_is_obeyed() -> None:
    layer = torch.nn.Linear(300, 300)
    layer.__class__ = QuickLinear
    layer.requires_grad_(False)
    rows = torch.randn(4, 300, requires_grad=True)
    layer(rows).sum().backward()
    assert rows.grad is not None
    assert (rows.grad - layer.weight.sum(0)).abs().max() < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(rows).dtype == torch.bfloat16


def test_a_product_knows_when_onednn_is_no_way() -> None:
    rows, weight = torch.randn(3, 300), torch.randn(300, 300)
    assert product(rows.double(), weight.double()).dtype == torch.float64
    assert product(rows.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16
    assert product(rows[:0], weight).shape == (0, 300)
    assert has_onednn() == torch.backends.mkldnn.is_available()
