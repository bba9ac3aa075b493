"""The ONNX backend's node cases for Conv, ConvTranspose, MaxPool and AveragePool: inputs and outputs by other hands.

Three-dimensional cases are left out. One-dimensional images are images of one row.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lenet.layers.functional import ALGORITHMS, avg_pool2d, conv2d, conv_transpose2d, max_pool2d


class Case(NamedTuple):
    name: str
    rtol: float
    atol: float
    operator: str
    attributes: dict[str, Any]
    inputs: list[Tensor]
    outputs: list[Tensor]


def load_cases() -> Iterator[Case]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cases of other operators overflow on purpose while they are made
        from onnx.backend.test.loader import load_model_tests
        from onnx.helper import get_attribute_value

        loaded = load_model_tests(kind="node")
    for case in loaded:
        assert case.model is not None
        assert case.data_sets is not None
        node = case.model.graph.node[0]
        if len(case.model.graph.node) == 1 and node.op_type in OPERATORS:
            attributes = {item.name: get_attribute_value(item) for item in node.attribute}
            for inputs, outputs in case.data_sets:
                tensors = [[torch.from_numpy(np.array(value)) for value in values] for values in (inputs, outputs)]
                yield Case(case.name, case.rtol, case.atol, node.op_type, attributes, *tensors)


class Window:
    """The attributes that all four operators have, for two dimensions."""

    def __init__(self, case: Case, images: Tensor, weights: list[Tensor]) -> None:
        self.attributes = case.attributes

        def pairs(name: str, default: int) -> list[int]:
            values = list(self.attributes.get(name, []))
            return [default] * (2 - len(values)) + values

        self.kernel_size = list(weights[0].shape[2:]) if weights else pairs("kernel_shape", 1)
        self.stride, self.dilation = pairs("strides", 1), pairs("dilations", 1)
        self.extra = pairs("output_padding", 0)
        pads = list(self.attributes.get("pads", [0] * 4))
        self.begin, self.end = pads[:2], pads[2:]
        self.ceil_mode = bool(self.attributes.get("ceil_mode", 0))
        auto_pad = self.attributes.get("auto_pad", b"NOTSET")
        if auto_pad != b"NOTSET" or "output_shape" in self.attributes:  # the output's size says how much padding it is
            sizes = [images.shape[2:], case.outputs[0].shape[2:]]
            few, many = sizes if case.operator == "ConvTranspose" else sizes[::-1]
            for i in (0, 1):
                covered = (few[i] - 1) * self.stride[i] + self.dilation[i] * (self.kernel_size[i] - 1) + 1
                self.extra[i] = max(self.extra[i], many[i] - covered)
                missing = max(0, covered + self.extra[i] - many[i])
                less_and_more = missing // 2, missing - missing // 2
                self.begin[i], self.end[i] = reversed(less_and_more) if auto_pad == b"SAME_LOWER" else less_and_more

    def padded(self, images: Tensor, value: float = 0) -> tuple[Tensor, list[int]]:
        """The images, and the padding that is left to the layer: it has to be the same at both edges, and small."""
        if self.begin == self.end and all(n <= k // 2 for n, k in zip(self.begin, self.kernel_size, strict=True)):
            return images, self.begin
        return F.pad(images, [self.begin[1], self.end[1], self.begin[0], self.end[0]], value=value), [0, 0]


def conv(images: Tensor, window: Window, weight: Tensor, algorithm: str = "taps") -> list[Tensor]:
    images, padding = window.padded(images)
    groups = window.attributes.get("group", 1)
    return [conv2d(images, weight, None, window.stride, padding, window.dilation, groups, algorithm)]


def conv_transpose(images: Tensor, window: Window, weight: Tensor, algorithm: str) -> list[Tensor]:
    groups, (top, left), (bottom, right) = window.attributes.get("group", 1), window.begin, window.end
    output = conv_transpose2d(images, weight, None, window.stride, 0, window.extra, groups, window.dilation, algorithm)
    return [F.pad(output, [-left, -right, -top, -bottom])]


def max_pool(images: Tensor, window: Window) -> list[Tensor]:
    height, width = images.shape[2:]
    values, padding = window.padded(images, -torch.inf)
    largest, indices = max_pool2d(
        values, window.kernel_size, window.stride, padding, window.dilation, window.ceil_mode, return_indices=True
    )
    if window.attributes.get("storage_order", 0):  # column by column
        indices = indices % width * height + indices // width
    return [largest, indices]


def average_pool(images: Tensor, window: Window) -> list[Tensor]:
    include_pad = bool(window.attributes.get("count_include_pad", 0))
    if window.dilation != [1, 1]:  # a convolution with a constant kernel
        return conv(images, window, torch.ones(1, 1, *window.kernel_size) / math.prod(window.kernel_size))
    values, padding = window.padded(images)
    options = (window.kernel_size, window.stride, padding, window.ceil_mode, include_pad)
    averages = avg_pool2d(values, *options)
    if include_pad or values is images:
        return [averages]
    counted, _ = window.padded(torch.ones_like(images))
    return [averages / avg_pool2d(counted, *options)]


OPERATORS: dict[str, Callable[..., list[Tensor]]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
}
CASES = [case for case in load_cases() if case.inputs[0].dim() <= 4]


def test_the_cases_were_found() -> None:
    # So many has onnx 1.22.
    assert Counter(case.operator for case in CASES) >= Counter(Conv=6, ConvTranspose=10, MaxPool=15, AveragePool=14)


PAIRS = [(case, name) for case in CASES for name in (ALGORITHMS if case.operator.startswith("Conv") else [""])]


@pytest.mark.parametrize(("case", "algorithm"), PAIRS, ids=[f"{case.name}-{name}".strip("-") for case, name in PAIRS])
def test_case(case: Case, algorithm: str) -> None:
    images, *weights = [value.unsqueeze(2) if value.dim() == 3 else value for value in case.inputs]
    results = OPERATORS[case.operator](images, Window(case, images, weights), *weights, *filter(None, [algorithm]))
    atol = 1e-5 if algorithm == "fft" else case.atol  # where zero is exact, a transform's rounding errors remain
    for result, expected in zip(results, case.outputs, strict=False):  # indices only where the case asks for them
        assert result.dtype == expected.dtype
        torch.testing.assert_close(result.view_as(expected), expected, rtol=case.rtol, atol=atol)
