"""The functions against torch.nn.functional's, over drawn shapes and options; hypothesis prints what it drew."""

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lenet.layers import functional as ours
from lenet.layers import im2col
from tests.layers.cases import LAYOUTS, TOLERANCE, assert_agree, each_algorithm

pairs_from = {least: st.one_of(st.integers(least, 3), st.tuples(*[st.integers(least, 3)] * 2)) for least in (0, 1)}


@st.composite
def tensors(draw: st.DrawFn, transposed: bool) -> tuple[list[Tensor], int]:
    """Input, weight, perhaps bias; and groups."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    groups = draw(st.integers(1, 3))
    in_channels, out_channels = (groups * draw(st.integers(1, 3)) for _ in range(2))
    height, width = (draw(st.integers(1, 9)) for _ in range(2))
    kernel_size = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    batch = draw(st.sampled_from([(), (0,), (1,), (3,)]))
    shape = (in_channels, out_channels // groups) if transposed else (out_channels, in_channels // groups)
    input = torch.randn(*batch, in_channels, height, width, generator=generator)
    input = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](input)
    weight = torch.randn(*shape, *kernel_size, generator=generator)
    bias = [torch.randn(out_channels, generator=generator)] if draw(st.booleans()) else []
    return [input, weight, *bias], groups


def refused(function: object, *arguments: object, **named: object) -> bool:
    try:
        function(*arguments, **named)  # type: ignore[operator]
    except RuntimeError:
        return True
    return False


@each_algorithm
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@given(drawn=tensors(False), stride=pairs_from[1], padding=st.one_of(pairs_from[0], st.sampled_from(["same", "valid"])),
       dilation=pairs_from[1])  # fmt: skip
def test_conv2d_agrees_with_torch(
    algorithm: str, dtype: torch.dtype, drawn: tuple[list[Tensor], int], **options: Any
) -> None:
    values, groups = [value.to(dtype) for value in drawn[0]], drawn[1]
    theirs = partial(F.conv2d, groups=groups, **options)
    mine = partial(ours.conv2d, groups=groups, **options, algorithm=algorithm)
    assert_agree(mine, theirs, values, TOLERANCE[dtype])


@each_algorithm
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@given(drawn=tensors(True), stride=pairs_from[1], padding=pairs_from[0], output_padding=pairs_from[0],
       dilation=pairs_from[1])  # fmt: skip
def test_conv_transpose2d_agrees_with_torch(
    algorithm: str, dtype: torch.dtype, drawn: tuple[list[Tensor], int], **options: Any
) -> None:
    values, groups = [value.to(dtype) for value in drawn[0]], drawn[1]
    theirs = partial(F.conv_transpose2d, groups=groups, **options)
    mine = partial(ours.conv_transpose2d, groups=groups, **options, algorithm=algorithm)
    if refused(mine, *values):
        # Of an empty batch torch does not ask whether the output would have a size, nor with groups in float32.
        if values[0].numel() == 0:
            values[0] = values[0].new_ones(1, *values[0].shape[-3:])
        assert refused(theirs, *(value.double() for value in values))
        return
    assert_agree(mine, theirs, values, TOLERANCE[dtype])


@each_algorithm
@pytest.mark.parametrize("function", ["conv2d", "conv_transpose2d"])
def test_first_and_second_derivatives_are_those_of_the_function(algorithm: str, function: str) -> None:
    images = torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 1 + (function == "conv2d"), 3, 2, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4 if function == "conv2d" else 2, dtype=torch.float64, requires_grad=True)
    options = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2, "algorithm": algorithm}

    def call(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return getattr(ours, function)(input, weight, bias, **options)  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(call, (images, weight, bias))
    assert torch.autograd.gradgradcheck(call, (images, weight, bias))


@each_algorithm
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_summed_up_in_single_precision(algorithm: str, dtype: torch.dtype) -> None:
    values = [torch.randn(shape).to(dtype) for shape in ((2, 4, 9, 9), (6, 4, 5, 5), (6,))]
    images, weight, bias = values
    result = ours.conv2d(images, weight, bias, padding=2, algorithm=algorithm)
    exact = F.conv2d(images.double(), weight.double(), bias.double(), padding=2)
    assert result.dtype == dtype
    # One rounding, to the nearest: half a unit in the last place.
    torch.testing.assert_close(result.double(), exact, rtol=torch.finfo(dtype).eps * 0.51, atol=1e-4)
    assert_agree(partial(ours.conv2d, algorithm=algorithm), F.conv2d, values, 2 * torch.finfo(dtype).eps)


@each_algorithm
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_integers_are_exact(algorithm: str, dtype: torch.dtype) -> None:
    image, kernel = torch.arange(9, dtype=dtype).view(1, 1, 3, 3), torch.arange(4, dtype=dtype).view(1, 1, 2, 2)
    result = ours.conv2d(image, kernel, algorithm=algorithm)
    assert torch.equal(result, torch.tensor([[[[19, 25], [37, 43]]]], dtype=dtype))


@each_algorithm
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64], ids=str)
def test_under_autocast_float32_alone_becomes_bfloat16(algorithm: str, dtype: torch.dtype) -> None:
    images, weight = torch.full((1, 1, 2, 2), 1001, dtype=dtype), torch.ones(1, 1, 1, 1, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = ours.conv2d(images, weight, algorithm=algorithm)
    assert result.dtype == (torch.bfloat16 if dtype == torch.float32 else dtype)
    assert torch.equal(result, images.to(result.dtype))


@pytest.mark.parametrize("algorithm", [name for name in ours.ALGORITHMS if name != "kernel_matrix"])
def test_shapes_without_values(algorithm: str) -> None:
    # PyTorch has no sparse product on its device for shapes alone.
    images, weight = torch.empty(2, 3, 8, 7, device="meta"), torch.empty(4, 3, 3, 2, device="meta")
    assert ours.conv2d(images, weight, stride=2, algorithm=algorithm).shape == (2, 4, 3, 3)


@each_algorithm
@pytest.mark.parametrize("function", [ours.conv2d, ours.conv_transpose2d])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "a part"])
def test_the_output_of_tensors_in_the_standard_layout_is_contiguous(algorithm: str, function: Any, layout: str) -> None:
    images, weight = LAYOUTS[layout](torch.rand(2, 3, 6, 5)), torch.rand(3, 3, 2, 2)
    assert function(images, weight, torch.rand(3), algorithm=algorithm).is_contiguous()
    assert function(images[0], weight, algorithm=algorithm).is_contiguous()


@each_algorithm
def test_nothing_calls_torchs_convolution_pooling_unfold_or_fold(algorithm: str) -> None:
    images = torch.rand(2, 2, 8, 8, requires_grad=True)
    weight = torch.rand(2, 2, 3, 3, requires_grad=True)
    with torch.profiler.profile() as profile:
        values = ours.conv2d(images, weight, algorithm=algorithm)
        values = ours.conv2d(values, weight, stride=2, padding=3, dilation=(1, 2), algorithm=algorithm)
        values = values + ours.conv2d(images, weight[:, :1], groups=2, padding="valid", algorithm=algorithm).sum()
        values = ours.conv_transpose2d(values, weight, stride=2, output_padding=1, algorithm=algorithm)
        pooled, _ = ours.max_pool2d(ours.avg_pool2d(values, 2, padding=1, ceil_mode=True), 2, return_indices=True)
        ours.conv2d(images.bfloat16(), weight.bfloat16(), algorithm=algorithm)
        total = pooled.square().sum()
        gradients = torch.autograd.grad(total, (images, weight), create_graph=True)
        torch.autograd.grad(gradients[0].square().sum() + gradients[1].square().sum(), (images, weight))
        F.avg_pool2d(images, 2)  # to see that a forbidden name would be noticed
    operators = {event.key for event in profile.key_averages() if event.key.startswith("aten::")}
    forbidden = {
        name for name in operators if any(word in name for word in ("conv", "pool", "im2col", "col2im", "fold"))
    }
    assert forbidden == {"aten::avg_pool2d"}


def test_im2cols_backward_by_hand_equals_autograds() -> None:
    values = [torch.randn(2, 3, 8, 7), torch.randn(4, 3, 3, 2)]
    steps: Any = {"stride": (2, 1), "dilation": (1, 2)}
    assert_agree(partial(im2col.conv2d, **steps), partial(im2col.conv2d_by_autograd, **steps), values, 1e-5)


def test_an_image_that_needs_no_gradient_gets_none_computed() -> None:
    images, weight = torch.rand(2, 1, 8, 8), torch.rand(3, 1, 3, 3, requires_grad=True)
    counts = []
    for needed in (False, True):
        with torch.profiler.profile() as profile:
            ours.conv2d(images.requires_grad_(needed), weight).sum().backward()  # type: ignore[no-untyped-call]
        counts.append({event.key: event.count for event in profile.key_averages()}["aten::baddbmm_"])
    assert counts[0] == 6  # of the weight: one for each row of the output
    assert counts[1] > counts[0]
