"""What the tests of the layers share: the algorithms, tensors of every kind, and what agreeing with PyTorch means."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from lenet.layers.functional import ALGORITHMS

each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
"""Largest difference from PyTorch, relative to the largest value (or to 1, if all are smaller): a transform of the
whole image spreads its rounding errors over all values, so that those near zero cannot be exact to so many digits."""


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    scale = max(1.0, theirs.abs().max().item()) if theirs.numel() else 1.0
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * scale)


def assert_agree(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], tensors: Sequence[Tensor], tolerance: float
) -> None:
    """The same value, and the same gradient with respect to each of the tensors; or both refuse them."""
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    try:
        expected = theirs(*tensors)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            ours(*tensors)
        return
    value = ours(*tensors)
    assert value.dtype == expected.dtype
    assert_close(value, expected, tolerance)
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0)).to(expected.dtype)
    gradients = torch.autograd.grad(value, tensors, direction)
    for gradient, other in zip(gradients, torch.autograd.grad(expected, tensors, direction), strict=True):
        assert_close(gradient, other, tolerance)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda values: values.contiguous(),
    "channels last": lambda values: values.movedim(-3, -1).contiguous().movedim(-1, -3),
    "batch innermost": lambda values: values.movedim(0, -1).contiguous().movedim(-1, 0),
    "transposed": lambda values: values.mT.contiguous().mT,
    "a part": lambda values: torch.nn.functional.pad(values, (2, 1, 1, 0))[..., 1:, 2:-1],
    "expanded": lambda values: values[..., :1].expand_as(values),
}
"""Ways in which a tensor can lie in memory."""
