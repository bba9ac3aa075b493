"""The functions against torch.nn.functional's, over drawn shapes and options; hypothesis prints what it drew."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lenet.layers import functional as ours
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
    algorithm: str, dtype: torch.dtype, drawn: tuple[list[Tensor], int], stride: int, padding: int, dilation: int
) -> None:
    values, groups = drawn
    values = [value.to(dtype) for value in values]
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if refused(F.conv2d, *values, **options):
        assert refused(ours.conv2d, *values, **options, algorithm=algorithm)
        return
    assert_agree(
        lambda input, weight, bias=None: ours.conv2d(input, weight, bias, **options, algorithm=algorithm),
        lambda input, weight, bias=None: F.conv2d(input, weight, bias, **options),
        values,
        TOLERANCE[dtype],
    )


@each_algorithm
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@given(drawn=tensors(True), stride=pairs_from[1], padding=pairs_from[0], output_padding=pairs_from[0],
       dilation=pairs_from[1])  # fmt: skip
def test_conv_transpose2d_agrees_with_torch(
    algorithm: str,
    dtype: torch.dtype,
    drawn: tuple[list[Tensor], int],
    stride: int,
    padding: int,
    output_padding: int,
    dilation: int,
) -> None:
    values, groups = drawn
    values = [value.to(dtype) for value in values]
    options = {
        "stride": stride,
        "padding": padding,
        "output_padding": output_padding,
        "groups": groups,
        "dilation": dilation,
    }
    if refused(ours.conv_transpose2d, *values, **options, algorithm=algorithm):
        # Of an empty batch torch does not ask whether the output would have a size, nor with groups in float32.
        if values[0].numel() == 0:
            values[0] = values[0].new_ones(1, *values[0].shape[-3:])
        assert refused(F.conv_transpose2d, *(value.double() for value in values), **options)
        return
    assert_agree(
        lambda input, weight, bias=None: ours.conv_transpose2d(input, weight, bias, **options, algorithm=algorithm),
        lambda input, weight, bias=None: F.conv_transpose2d(input, weight, bias, **options),
        values,
        TOLERANCE[dtype],
    )


@given(drawn=tensors(False), kernel_size=pairs_from[1], dilation=pairs_from[1], padding=pairs_from[0],
       stride=pairs_from[1])  # fmt: skip
def test_unfold_agrees_with_torch(
    drawn: tuple[list[Tensor], int], kernel_size: int, dilation: int, padding: int, stride: int
) -> None:
    input, options = drawn[0][0].double(), (kernel_size, dilation, padding, stride)
    if refused(F.unfold, input, *options):
        assert refused(ours.unfold, input, *options)
        return
    assert_agree(lambda x: ours.unfold(x, *options), lambda x: F.unfold(x, *options), [input], 1e-12)


@each_algorithm
@pytest.mark.parametrize("function", ["conv2d", "conv_transpose2d"])
def test_first_and_second_derivatives_are_those_of_the_function(algorithm: str, function: str) -> None:
    torch.manual_seed(0)
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
    torch.manual_seed(0)
    values = [torch.randn(2, 4, 9, 9), torch.randn(6, 4, 5, 5), torch.randn(6)]
    values = [value.to(dtype) for value in values]
    images, weight, bias = values
    result = ours.conv2d(images, weight, bias, padding=2, algorithm=algorithm)
    exact = F.conv2d(images.double(), weight.double(), bias.double(), padding=2)
    assert result.dtype == dtype
    # One rounding, to the nearest: half a unit in the last place.
    torch.testing.assert_close(result.double(), exact, rtol=torch.finfo(dtype).eps * 0.51, atol=1e-4)
    assert_agree(
        lambda x, w, b: ours.conv2d(x, w, b, algorithm=algorithm), F.conv2d, values, 2 * torch.finfo(dtype).eps
    )


@each_algorithm
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_integers_are_exact(algorithm: str, dtype: torch.dtype) -> None:
    image, kernel = torch.arange(9, dtype=dtype).view(1, 1, 3, 3), torch.arange(4, dtype=dtype).view(1, 1, 2, 2)
    result = ours.conv2d(image, kernel, algorithm=algorithm)
    assert torch.equal(result, torch.tensor([[[[19, 25], [37, 43]]]], dtype=dtype))


@each_algorithm
def test_under_autocast_the_result_has_its_dtype(algorithm: str) -> None:
    images, weight = torch.rand(1, 2, 5, 5), torch.rand(3, 2, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result, expected = ours.conv2d(images, weight, algorithm=algorithm), F.conv2d(images, weight)
    assert result.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(result, expected)


def test_under_autocast_integers_and_float64_stay_what_they_are() -> None:
    for dtype in (torch.int64, torch.float64):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = ours.conv2d(torch.full((1, 1, 1, 1), 1001, dtype=dtype), torch.ones(1, 1, 1, 1, dtype=dtype))
        assert result.dtype == dtype
        assert result.item() == 1001


@pytest.mark.parametrize("algorithm", [name for name in ours.ALGORITHMS if name != "kernel_matrix"])
def test_shapes_without_values(algorithm: str) -> None:
    # PyTorch has no sparse product on its device for shapes alone.
    images, weight = torch.empty(2, 3, 8, 7, device="meta"), torch.empty(4, 3, 3, 2, device="meta")
    assert ours.conv2d(images, weight, stride=2, algorithm=algorithm).shape == (2, 4, 3, 3)


@each_algorithm
@pytest.mark.parametrize("function", ["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "a part"])
def test_the_output_of_tensors_in_the_standard_layout_is_contiguous(algorithm: str, function: str, layout: str) -> None:
    images, weight = LAYOUTS[layout](torch.rand(2, 3, 6, 5)), torch.rand(3, 3, 2, 2)
    for input in (images, images[0]):
        output = getattr(ours, function)(input, weight, torch.rand(3), algorithm=algorithm)
        assert output.is_contiguous()
        assert getattr(F, function)(input, weight).is_contiguous()


class OperatorNames(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the name of each operator that PyTorch runs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, operator, types, arguments=(), named=None):  # type: ignore[no-untyped-def]
        self.names.add(operator.overloadpacket.__name__)
        return operator(*arguments, **(named or {}))


FORBIDDEN = ("conv", "pool", "im2col", "col2im", "unfold", "fold")


def test_the_names_would_be_noticed() -> None:
    with OperatorNames() as seen:
        F.avg_pool2d(F.conv2d(torch.rand(1, 1, 5, 5), torch.rand(1, 1, 2, 2)), 2)
        F.unfold(torch.rand(1, 1, 5, 5), 2)
    assert {"convolution", "avg_pool2d", "im2col"} <= seen.names


@each_algorithm
def test_nothing_calls_torchs_convolution_pooling_unfold_or_fold(algorithm: str) -> None:
    images = torch.rand(2, 2, 8, 8, requires_grad=True)
    weight = torch.rand(2, 2, 3, 3, requires_grad=True)
    with OperatorNames() as seen:
        values = ours.conv2d(images, weight, algorithm=algorithm)
        values = ours.conv2d(values, weight, stride=2, padding=3, dilation=(1, 2), algorithm=algorithm)
        values = (
            values + ours.conv2d(images, weight[:, :1], groups=2, padding="valid", stride=2, algorithm=algorithm).sum()
        )
        values = ours.conv_transpose2d(values, weight, stride=2, output_padding=1, algorithm=algorithm)
        pooled, _ = ours.max_pool2d(ours.avg_pool2d(values, 2, padding=1, ceil_mode=True), 2, return_indices=True)
        ours.conv2d(images.bfloat16(), weight.bfloat16(), algorithm=algorithm)
        total = pooled.square().sum() + ours.unfold(images, 2).square().sum()
        gradients = torch.autograd.grad(total, (images, weight), create_graph=True)
        torch.autograd.grad(gradients[0].square().sum() + gradients[1].square().sum(), (images, weight))
    assert seen.names
    assert not [name for name in seen.names if any(word in name for word in FORBIDDEN)]
