"""The backward written by hand against the one that autograd derives from the plain formula."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lenet.layers.im2col import conv2d, conv2d_by_autograd, windows
from tests.layers.cases import assert_agree, assert_close

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(size=st.tuples(st.integers(7, 10), st.integers(7, 10)), channels=pairs, kernel_size=pairs, stride=pairs,
       dilation=pairs)  # fmt: skip
def test_the_backward_by_hand_equals_autograds(
    size: tuple[int, int],
    channels: tuple[int, int],
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, channels[0], *size, dtype=torch.float64)
    weight = torch.randn(channels[1], channels[0], *kernel_size, dtype=torch.float64)
    assert_agree(
        lambda x, w: conv2d(x, w, stride, dilation),
        lambda x, w: conv2d_by_autograd(x, w, stride, dilation),
        [images, weight],
        1e-12,
    )


def test_the_second_derivative_by_hand_equals_autograds() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 7, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    results = []
    for function in (conv2d, conv2d_by_autograd):
        penalty = torch.zeros((), dtype=torch.float64)
        for gradient in torch.autograd.grad(
            function(images, weight, (2, 1), (1, 2)).square().sum(), (images, weight), create_graph=True
        ):
            penalty = penalty + gradient.square().sum()
        results.append(torch.autograd.grad(penalty, (images, weight)))
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs, 1e-12)


def test_an_image_that_needs_no_gradient_gets_none_computed() -> None:
    images, weight = torch.rand(2, 1, 8, 8), torch.rand(3, 1, 3, 3, requires_grad=True)
    with torch.profiler.profile() as profile:
        torch.autograd.grad(conv2d(images, weight, (1, 1), (1, 1)).sum(), weight)
    names = {event.key for event in profile.key_averages()}
    assert "_WeightGradient" in names
    assert "_InputGradient" not in names


def test_windows_are_a_view_of_the_image() -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4)
    view = windows(image, (2, 3), (1, 1), (1, 1))
    assert view.data_ptr() == image.data_ptr()
    assert view.shape == (1, 1, 2, 3, 3, 2)
    assert torch.equal(view[0, 0, :, :, 1, 1], Tensor([[5, 6, 7], [9, 10, 11]]))
