"""What torch refuses is refused, as the same type of exception, in one line with the argument and the numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lenet import layers
from lenet.layers import functional as ours


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape)


X, W, T = ones(2, 4, 7, 7), ones(6, 4, 3, 3), ones(4, 3, 3, 3)

# function, arguments, named arguments, message
CASES: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("conv2d", (ones(1, 3, 7, 7), ones(4, 2, 3, 3)), {"groups": 2},
     "conv2d: input should have 4 channels for a weight of shape "
     "[4, 2, 3, 3] with groups=2, got 3: [1, 3, 7, 7]"),
    ("conv2d", (X, ones(3, 2, 3, 3)), {"groups": 2}, "groups=2: should divide the weight's first dimension, got 3 of "
     "[3, 2, 3, 3]"),
    ("conv2d", (X, W), {"groups": 0}, "groups=0: should be at least 1"),
    ("conv2d", (X, ones(0, 4, 3, 3)), {}, "conv2d: weight should have at least one output channel, got [0, 4, 3, 3]"),
    ("conv_transpose2d", (X, ones(4, 0, 3, 3)), {}, "conv_transpose2d: weight should have at least one output channel"),
    ("conv2d", (ones(1, 4, 2, 2), W), {},
     "conv2d: the kernel covers 3×3 pixels, more than the padded input's 2×2; use"),
    ("conv2d", (X, W), {"dilation": 4}, "conv2d: the kernel covers 9×9 pixels, more than the padded input's 7×7; use"),
    ("conv2d", (X, W), {"stride": 0}, "stride=0: should be at least 1, got 0"),
    ("conv2d", (X, W), {"stride": (1, -2)}, "stride=(1, -2): should be at least 1, got -2"),
    ("conv2d", (X, W), {"stride": (1, 1, 1)}, "stride=(1, 1, 1): should be one integer or two, got 3"),
    ("conv2d", (X, W), {"stride": 1.5}, "stride=1.5: should be an integer or a pair of integers"),
    ("conv2d", (X, W), {"stride": None}, "stride=None: should be an integer or a pair of integers"),
    ("conv2d", (X, W), {"stride": True}, "stride=True: should be an integer or a pair of integers"),
    ("conv2d", (X, W), {"dilation": 0}, "dilation=0: should be at least 1, got 0"),
    ("conv2d", (X, W), {"padding": -1}, "padding=-1: should be at least 0, got -1"),
    ("conv2d", (X, W), {"padding": "full"}, "padding='full': should be numbers, 'same' or 'valid'"),
    ("conv2d", (X, W), {"padding": "same", "stride": 2}, "padding='same': needs stride=1, got stride=(2, 2)"),
    ("conv2d", (X, ones(4, 3, 3)), {}, "conv2d: weight should have 4 dimensions, got 3: [4, 3, 3]"),
    ("conv2d", (X, ones(4, 4, 3, 3, 3)), {}, "conv2d: weight should have 4 dimensions, got 5: [4, 4, 3, 3, 3]"),
    ("conv2d", (ones(7, 7), W), {},
     "conv2d: input should have 4 dimensions (N, C, H, W), or 3 without a batch, got 2: "
     "[7, 7]"),
    ("conv2d", (ones(2, 4, 0, 7), W), {}, "conv2d: input should have at least 1×1 pixels, got [2, 4, 0, 7]"),
    ("conv2d", (X, ones(6, 4, 0, 3)), {}, "conv2d: weight should have at least 1×1 pixels, got [6, 4, 0, 3]"),
    ("conv2d", (X, W.double()), {},
     "conv2d: weight should have the dtype of the input, torch.float32, got torch.float64"),
    ("conv2d", (X, W, ones(6).double()), {}, "conv2d: bias should have the dtype of the input, torch.float32, got "
     "torch.float64"),
    ("conv2d", (X, W, ones(3)), {}, "conv2d: bias should have shape [6], got [3]"),
    ("conv2d", (X, W, ones(6, 1)), {}, "conv2d: bias should have shape [6], got [6, 1]"),
    ("conv2d", ([1], W), {}, "conv2d: input should be a tensor, got list"),
    ("conv2d", (X, None), {}, "conv2d: weight should be a tensor, got NoneType"),
    ("conv2d", (X.bool(), W.bool()), {}, "conv2d: input is of dtype torch.bool; use a real one, such as float32"),
    ("conv_transpose2d", (X, ones(3, 3, 3, 3)), {},
     "conv_transpose2d: input should have 3 channels for a weight of shape "
     "[3, 3, 3, 3] with groups=1, got 4"),
    ("conv_transpose2d", (X, T), {"groups": 3}, "groups=3: should divide the weight's first dimension, got 4"),
    ("conv_transpose2d", (X, T, ones(4)), {}, "conv_transpose2d: bias should have shape [3], got [4]"),
    ("conv_transpose2d", (X, T), {"stride": 2, "output_padding": 2},
     "output_padding=2: should be less than stride=2 or "
     "dilation=1"),
    ("conv_transpose2d", (X, T), {"output_padding": -1}, "output_padding=-1: should be at least 0, got -1"),
    ("conv_transpose2d", (ones(1, 4, 1, 1), ones(4, 3, 2, 2)), {"padding": 1},
     "padding=1: leaves nothing of the output, 0×0 of 2×2; use less"),
    ("conv_transpose2d", (X, T), {"padding": "same"}, "padding='same': should be an integer or a pair of integers"),
    ("conv_transpose2d", (X, T), {"stride": 0}, "stride=0: should be at least 1, got 0"),
    ("conv_transpose2d", (X, ones(4, 3, 3)), {},
     "conv_transpose2d: weight should have 4 dimensions, got 3: [4, 3, 3]"),
    ("conv_transpose2d", (X, T.double()), {},
     "conv_transpose2d: weight should have the dtype of the input, torch.float32"),
    ("max_pool2d", (X, 2), {"padding": 2}, "padding=2: should be at most half the kernel size, got 2 with 2"),
    ("max_pool2d", (X, (4, 2)), {"padding": 2}, "padding=2: should be at most half the kernel size, got 2 with 2"),
    ("max_pool2d", (X, 2), {"padding": -1}, "padding=-1: should be at least 0, got -1"),
    ("max_pool2d", (X, 0), {}, "kernel_size=0: should be at least 1, got 0"),
    ("max_pool2d", (X, 2), {"stride": 0}, "stride=0: should be at least 1, got 0"),
    ("max_pool2d", (X, 2), {"dilation": 0}, "dilation=0: should be at least 1, got 0"),
    ("max_pool2d", (X, 9), {},
     "kernel_size=9: should fit into the padded input; a window covers 9 values, the input has 7"),
    ("max_pool2d", (X, (1, 1, 1)), {}, "kernel_size=(1, 1, 1): should be one integer or two, got 3"),
    ("max_pool2d", (X, "a"), {}, "kernel_size='a': should be an integer or a pair of integers"),
    ("max_pool2d", (ones(2, 2), 1), {}, "max_pool2d: input should be (N, C, H, W) or (C, H, W), got shape [2, 2]"),
    ("max_pool2d", (ones(1, 0, 4, 4), 2), {},
     "max_pool2d: input should have channels and pixels, got shape [1, 0, 4, 4]"),
    ("max_pool2d", (X.bool(), 2), {}, "max_pool2d: input is of dtype torch.bool"),
    ("avg_pool2d", (X, 2), {"padding": 2}, "padding=2: should be at most half the kernel size, got 2 with 2"),
    ("avg_pool2d", (X, 2), {"divisor_override": 0}, "divisor_override=0: should be another number than 0"),
    ("avg_pool2d", (X, 2), {"divisor_override": 2.5}, "divisor_override=2.5: should be an integer"),
    ("avg_pool2d", (X, 9), {},
     "kernel_size=9: should fit into the padded input; a window covers 9 values, the input has 7"),
    ("avg_pool2d", (ones(2, 2), 1), {}, "avg_pool2d: input should be (N, C, H, W) or (C, H, W), got shape [2, 2]"),
    ("avg_pool2d", (ones(1, 2, 2, 2, 2), 1), {}, "avg_pool2d: input should be (N, C, H, W) or (C, H, W), got shape"),
    ("avg_pool2d", (X.byte(), 2), {}, "avg_pool2d: input is of dtype torch.uint8; use a floating-point one"),
    ("avg_pool2d", (X.int(), 2), {}, "avg_pool2d: input is of dtype torch.int32; use a floating-point one"),
    ("unfold", (X, 9), {}, "unfold: the kernel covers 9×9 pixels, more than the padded input's 7×7"),
    ("unfold", (X, 2), {"padding": -1}, "padding=-1: should be at least 0, got -1"),
    ("unfold", (X, (2,)), {}, "kernel_size=(2,): should be an integer or a pair of integers, got one in a sequence"),
    ("unfold", (X.long(), 2), {}, "unfold: input is of dtype torch.int64; use a floating-point one"),
    ("unfold", (ones(7, 7), 2), {}, "unfold: input should be (N, C, H, W) or (C, H, W), not empty, got shape [7, 7]"),
]  # fmt: skip


def error_of(call: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011  which it is, the tests ask
        call()
    return caught.value


@pytest.mark.parametrize(
    ("function", "arguments", "named", "message"), CASES, ids=[f"{case[0]}: {case[3][:40]}" for case in CASES]
)
def test_a_bad_argument(function: str, arguments: tuple[Any, ...], named: dict[str, Any], message: str) -> None:
    theirs = error_of(lambda: getattr(F, function)(*arguments, **named))
    error = error_of(lambda: getattr(ours, function)(*arguments, **named))
    assert type(error) is type(theirs)
    assert str(error).startswith(message)
    assert "\n" not in str(error)


@pytest.mark.parametrize("function", ["conv2d", "conv_transpose2d"])
def test_tensors_on_different_devices(function: str) -> None:
    with pytest.raises(RuntimeError, match="weight should have the device of the input, cpu, got meta"):
        getattr(ours, function)(X, W.to("meta"))


@pytest.mark.parametrize(
    "call",
    [
        lambda: ours.conv2d(X, W, algorithm="magic"),
        lambda: ours.conv_transpose2d(X, T, algorithm="magic"),
        lambda: layers.Conv2d(1, 1, 3, algorithm="magic"),
        lambda: layers.ConvTranspose2d(1, 1, 3, algorithm="magic"),
        lambda: layers.MaxPool2d(2, algorithm="magic"),
        lambda: layers.AvgPool2d(2, algorithm="magic"),
    ],
)
def test_an_unknown_algorithm(call: Callable[[], Any]) -> None:
    with pytest.raises(
        ValueError, match=r"^algorithm='magic': should be one of loops, taps, im2col, kernel_matrix, fft$"
    ):
        call()


@pytest.mark.parametrize(
    "named",
    [
        {"groups": 2},
        {"groups": 0},
        {"padding": "full"},
        {"padding": "same", "stride": 2},
        {"padding_mode": "mirror"},
    ],
    ids=str,
)
def test_a_bad_argument_of_the_layer(named: dict[str, Any]) -> None:
    theirs = error_of(lambda: nn.Conv2d(3, 4, 3, **named))
    error = error_of(lambda: layers.Conv2d(3, 4, 3, **named))
    assert type(error) is type(theirs) is ValueError
    assert str(error) == str(theirs)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ours.cross_correlation(ones(2, 2), ones(3, 3)), RuntimeError, "image: should be at least 3×3, as the"),
        (
            lambda: ours.cross_correlation(ones(1, 2, 2), ones(1, 1)),
            RuntimeError,
            "image: should be two-dimensional and",
        ),
        (
            lambda: ours.convolution(ones(2, 2), ones(2)),
            RuntimeError,
            "kernel: should be two-dimensional and not empty",
        ),
        (
            lambda: ours.cross_correlation(cast(Any, [[1]]), ones(1, 1)),
            TypeError,
            "image should be a tensor, got list",
        ),
        (
            lambda: ours.pool2d(ones(3, 3), 2, cast(Any, "median")),
            ValueError,
            "mode='median': should be 'max' or 'avg'",
        ),
        (lambda: ours.pool2d(ones(3, 3), 4), RuntimeError, "image: should be at least 4×4, as the window is, got 3×3"),
        (lambda: ours.pool2d(ones(3, 3), 0), RuntimeError, "size=0: should be at least 1, got 0"),
    ],
)
def test_a_bad_argument_of_the_two_dimensional_functions(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(message)
