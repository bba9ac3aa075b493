"""Arguments that do not fit raise an error that names them; torch refuses the same."""

from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lenet import layers
from lenet.layers import functional as ours


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape)


X, W, T = ones(2, 4, 7, 7), ones(6, 4, 3, 3), ones(4, 3, 3, 3)

# function, arguments, named arguments, what the message says
CASES: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("conv2d", (ones(1, 3, 7, 7), W), {}, r"4 channels .*\[6, 4, 3, 3\] .* got 3"),
    ("conv2d", (X, ones(3, 2, 3, 3)), {"groups": 2}, "groups=2: .* 3"),
    ("conv2d", (ones(1, 4, 2, 2), W), {}, "covers 3×3 pixels, .* 2×2"),
    ("conv2d", (X, W), {"dilation": 4}, "covers 9×9 pixels, .* 7×7"),
    ("conv2d", (X, W), {"padding": "same", "stride": 2}, "padding='same': needs stride=1"),
    ("conv2d", (X, W), {"padding": "full"}, "padding='full'"),
    ("conv2d", (X, W), {"padding": -1}, "padding=-1"),
    ("conv2d", (X, W), {"stride": 0}, "stride=0"),
    ("conv2d", (ones(7, 7), W), {}, r"input: .*\(N, C, H, W\) .* \[7, 7\]"),
    ("conv2d", (X, ones(4, 3, 3)), {}, r"weight .* \[4, 3, 3\]"),
    ("conv2d", (X, W, ones(3)), {}, r"bias .*\[6\], got \[3\]"),
    ("conv2d", (X, W.double()), {}, "same real dtype, got torch.float32, torch.float64"),
    ("conv_transpose2d", (X, ones(3, 3, 3, 3)), {}, "3 channels .* got 4"),
    ("conv_transpose2d", (X, T), {"stride": 2, "output_padding": 2}, r"output_padding=\(2, 2\): .* stride=\(2, 2\)"),
    ("conv_transpose2d", (ones(1, 4, 1, 1), ones(4, 3, 2, 2)), {"padding": 1}, "padding=1: leaves nothing .* 2×2"),
    ("max_pool2d", (X, 9), {}, "covers 9×9 pixels, .* 7×7"),
    ("max_pool2d", (X, 2), {"padding": 2}, "padding=2: .* half"),
    ("max_pool2d", (ones(2, 2), 1), {}, r"input: .* \[2, 2\]"),
    ("avg_pool2d", (X, 9), {}, "covers 9×9 pixels, .* 7×7"),
    ("avg_pool2d", (X, 2), {"divisor_override": 0}, "divisor_override=0"),
    ("avg_pool2d", (X.byte(), 2), {}, "uint8"),
]


@pytest.mark.parametrize(("function", "arguments", "named", "message"), CASES, ids=[f"{c[0]} {c[3]}" for c in CASES])
def test_a_bad_argument(function: str, arguments: tuple[Any, ...], named: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError):
        getattr(F, function)(*arguments, **named)
    with pytest.raises(RuntimeError, match=message):
        getattr(ours, function)(*arguments, **named)


CALLS = [partial(ours.conv2d, X, W), partial(layers.Conv2d, 1, 1, 3), partial(layers.AvgPool2d, 2)]


@pytest.mark.parametrize("call", CALLS)
def test_an_unknown_algorithm(call: Any) -> None:
    with pytest.raises(ValueError, match=r"algorithm='magic': .* loops, taps, im2col, kernel_matrix, fft"):
        call(algorithm="magic")


def test_a_kernel_larger_than_a_two_dimensional_image() -> None:
    with pytest.raises(RuntimeError, match=r"3×3 .* 2×2"):
        ours.cross_correlation(ones(2, 2), ones(3, 3))
