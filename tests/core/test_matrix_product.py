"""Large products equal plain ones, whichever library computes them."""

import pytest
import torch
from clipfake.core.matrix_product import product


@pytest.mark.parametrize("small", [0, 2**40])
@pytest.mark.parametrize("shape", [(1, 7, 5), (33, 512, 130), (70, 12, 1)])
def test_product_equals_plain_product(shape: tuple[int, int, int], small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipfake.core.matrix_product.SMALL", small)
    n, dim, m = shape
    rng = torch.Generator().manual_seed(0)
    left, right = (torch.randn(rows, dim, generator=rng) for rows in (n, m))
    result = product(left, right)
    assert result.shape == (n, m) and result.dtype is torch.float32
    assert torch.allclose(result.double(), left.double() @ right.double().T, atol=1e-4)
    strided = torch.randn(dim, m, generator=rng).T
    assert torch.allclose(product(left, strided), left @ strided.T, atol=1e-4)


def test_product_has_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipfake.core.matrix_product.SMALL", 0)
    weights = torch.ones(3, 4, requires_grad=True)
    product(torch.ones(2, 4), weights).sum().backward()  # type: ignore[no-untyped-call]
    assert weights.grad is not None and torch.equal(weights.grad, torch.full((3, 4), 2.0))


def test_other_dtypes_are_multiplied_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipfake.core.matrix_product.SMALL", 0)
    rows = torch.eye(3, dtype=torch.float64) * (1 + 2**-40)
    assert torch.equal(product(rows, rows), rows @ rows.T)
