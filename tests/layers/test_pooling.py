"""Pooling against torch.nn.functional's, over drawn shapes and options; hypothesis prints what it drew."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lenet.layers.functional import avg_pool2d, max_pool2d
from tests.layers.cases import LAYOUTS, TOLERANCE, assert_agree
from tests.layers.test_functional import pairs_from, refused

strides = st.one_of(st.none(), pairs_from[1])


@st.composite
def images(draw: st.DrawFn) -> Tensor:
    """Small whole numbers, so that many are equal, with -∞ and NaN among them now and then."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch = draw(st.sampled_from([(), (0,), (1,), (3,)]))
    shape = (*batch, draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    values = torch.randint(-2, 3, shape, generator=generator).double()
    special = draw(st.sampled_from([None, None, -torch.inf, torch.nan]))
    if special is not None:
        values[torch.rand(shape, generator=generator) < 0.3] = special
    return LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](values)


@given(input=images(), kernel_size=pairs_from[1], stride=strides, padding=pairs_from[0], dilation=pairs_from[1],
       ceil_mode=st.booleans())  # fmt: skip
def test_max_pool2d_agrees_with_torch(input: Tensor, **options: Any) -> None:
    if refused(F.max_pool2d, input, **options):
        assert refused(max_pool2d, input, **options)
        return
    ours, theirs = (pool(input, **options, return_indices=True) for pool in (max_pool2d, F.max_pool2d))
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=0, equal_nan=True)
    if (F.max_pool2d(torch.ones_like(input), **options) != 1).any():
        return  # a dilated window saw padding alone: there is no index, and torch's points anywhere
    assert torch.equal(ours[1], theirs[1])
    input = input.clone().requires_grad_()
    sums = [pool(input, **options).sum() for pool in (max_pool2d, F.max_pool2d)]
    assert torch.equal(*(torch.autograd.grad(total, input)[0] for total in sums))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@given(input=images(), kernel_size=pairs_from[1], stride=strides, padding=pairs_from[0], ceil_mode=st.booleans(),
       count_include_pad=st.booleans(), divisor_override=st.sampled_from([None, 3, -2]))  # fmt: skip
def test_avg_pool2d_agrees_with_torch(dtype: torch.dtype, input: Tensor, **options: Any) -> None:
    input = input.nan_to_num(neginf=5).to(dtype)
    assert_agree(lambda x: avg_pool2d(x, **options), lambda x: F.avg_pool2d(x, **options), [input], TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64], ids=str)
def test_other_numbers_are_pooled_as_torch_does(dtype: torch.dtype) -> None:
    values = (10 * torch.randn(2, 3, 8, 8)).to(dtype)
    assert torch.equal(max_pool2d(values, 3, 2, 1), F.max_pool2d(values, 3, 2, 1))
    assert torch.equal(avg_pool2d(values, 2), F.avg_pool2d(values, 2))


@pytest.mark.parametrize("padding", [0, 1])
def test_second_derivatives(padding: int) -> None:
    values = torch.randn(2, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    for pool in (max_pool2d, avg_pool2d):
        assert torch.autograd.gradcheck(lambda x, pool=pool: pool(x, 3, 2, padding), values)
        assert torch.autograd.gradgradcheck(lambda x, pool=pool: pool(x, 3, 2, padding), values)


@pytest.mark.parametrize("pool", [max_pool2d, avg_pool2d])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "batch innermost"])
def test_outputs_and_gradients_lie_in_memory_as_the_images_do(pool: Any, layout: str) -> None:
    values = LAYOUTS[layout](torch.rand(3, 5, 8, 8)).requires_grad_()
    output = pool(values, 2)
    (gradient,) = torch.autograd.grad(output, values, torch.rand(3, 5, 4, 4))
    assert gradient.stride() == values.stride()
    assert sorted(range(4), key=output.stride) == sorted(range(4), key=values.stride)
