"""The ONNX backend's node cases for Conv, ConvTranspose, MaxPool and AveragePool: inputs and outputs by other hands.

Three-dimensional cases are left out. One-dimensional images are images of one row.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lenet.layers.functional import ALGORITHMS, avg_pool2d, conv2d, conv_transpose2d, max_pool2d

LEAST = {"Conv": 6, "ConvTranspose": 10, "MaxPool": 15, "AveragePool": 14}
"""The operators, and how many cases onnx 1.22 has of each."""


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
        if len(case.model.graph.node) == 1 and node.op_type in LEAST:
            attributes = {item.name: get_attribute_value(item) for item in node.attribute}
            for inputs, outputs in case.data_sets:
                tensors = [[torch.from_numpy(np.array(value)) for value in values] for values in (inputs, outputs)]
                yield Case(case.name, case.rtol, case.atol, node.op_type, attributes, *tensors)


CASES = [case for case in load_cases() if case.inputs[0].dim() <= 4]


def test_the_cases_were_found() -> None:
    counts = Counter(case.operator for case in CASES)
    assert all(counts[operator] >= least for operator, least in LEAST.items())


PAIRS = [(case, name) for case in CASES for name in (ALGORITHMS if case.operator.startswith("Conv") else [""])]


@pytest.mark.parametrize(("case", "algorithm"), PAIRS, ids=[f"{case.name}-{name}".strip("-") for case, name in PAIRS])
def test_case(case: Case, algorithm: str) -> None:
    inputs = [value.unsqueeze(2) if value.dim() == 3 else value for value in case.inputs]
    operator = {"Conv": conv, "ConvTranspose": conv_transpose, "MaxPool": max_pool, "AveragePool": average_pool}
    results = operator[case.operator](case, inputs, Window(case, inputs), algorithm)
    atol = 1e-5 if algorithm == "fft" else case.atol  # where zero is exact, a transform's rounding errors remain
    for result, expected in zip(results, case.outputs, strict=False):  # indices only where the case asks for them
        assert result.dtype == expected.dtype
        torch.testing.assert_close(result.view_as(expected), expected, rtol=case.rtol, atol=atol)


class Window:
    """The attributes that all four operators have, for two dimensions."""

    def __init__(self, case: Case, inputs: list[Tensor]) -> None:
        attributes = case.attributes
        rank = case.inputs[0].dim() - 2
        before = [1] * (2 - rank)

        def sizes(name: str, default: list[int]) -> list[int]:
            return before + list(attributes.get(name, default))

        kernel = list(inputs[1].shape[-rank:]) if case.operator.startswith("Conv") else []
        self.kernel_size = sizes("kernel_shape", kernel)
        self.stride, self.dilation = sizes("strides", [1] * rank), sizes("dilations", [1] * rank)
        self.covered = [d * (k - 1) + 1 for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        self.options = {"stride": self.stride, "dilation": self.dilation, "groups": attributes.get("group", 1)}
        self.size = list(inputs[0].shape[-2:])
        pads = list(attributes.get("pads", [0] * (2 * rank)))
        self.begin, self.end = [0] * (2 - rank) + pads[:rank], [0] * (2 - rank) + pads[rank:]
        self.auto_pad = attributes.get("auto_pad", b"NOTSET").decode()
        if self.auto_pad.startswith("SAME") and case.operator != "ConvTranspose":
            outputs = [-(-n // s) for n, s in zip(self.size, self.stride, strict=True)]
            self.split([(outputs[i] - 1) * self.stride[i] + self.covered[i] - self.size[i] for i in (0, 1)])

    def split(self, total: list[int]) -> None:
        """Share the padding between the two edges."""
        total = [max(0, n) for n in total]
        less, more = [n // 2 for n in total], [n - n // 2 for n in total]
        self.begin, self.end = (more, less) if self.auto_pad == "SAME_LOWER" else (less, more)

    def pad(self, values: Tensor, value: float = 0) -> Tensor:
        return F.pad(values, [self.begin[1], self.end[1], self.begin[0], self.end[0]], value=value)

    def fits_a_pooling_layer(self) -> bool:
        """Whether the padding is one that pooling layers take: the same at both edges, at most half a window."""
        return self.begin == self.end and all(n <= k // 2 for n, k in zip(self.begin, self.kernel_size, strict=True))


def conv(case: Case, inputs: list[Tensor], window: Window, algorithm: str) -> list[Tensor]:
    return [conv2d(window.pad(inputs[0]), inputs[1], **window.options, algorithm=algorithm)]


def conv_transpose(case: Case, inputs: list[Tensor], window: Window, algorithm: str) -> list[Tensor]:
    full = [(window.size[i] - 1) * window.stride[i] + window.covered[i] for i in (0, 1)]
    extra = list(case.attributes.get("output_padding", [0, 0]))
    wanted = list(case.attributes.get("output_shape", []))
    if window.auto_pad.startswith("SAME"):
        wanted = [window.size[i] * window.stride[i] for i in (0, 1)]
    if wanted:
        extra = [max(extra[i], wanted[i] - full[i]) for i in (0, 1)]
        window.split([full[i] + extra[i] - wanted[i] for i in (0, 1)])
    output = conv_transpose2d(inputs[0], inputs[1], output_padding=extra, **window.options, algorithm=algorithm)
    bottom, right = (output.shape[i - 2] - window.end[i] for i in (0, 1))
    return [output[..., window.begin[0] : bottom, window.begin[1] : right]]


def max_pool(case: Case, inputs: list[Tensor], window: Window, algorithm: str) -> list[Tensor]:
    values, padding = inputs[0], window.begin
    if not window.fits_a_pooling_layer():
        values, padding = window.pad(values, -torch.inf), [0, 0]
    ceil_mode = bool(case.attributes.get("ceil_mode", 0))
    largest, indices = max_pool2d(
        values, window.kernel_size, window.stride, padding, window.dilation, ceil_mode, return_indices=True
    )
    if case.attributes.get("storage_order", 0):  # column by column
        indices = indices % window.size[1] * window.size[0] + indices // window.size[1]
    return [largest, indices]


def average_pool(case: Case, inputs: list[Tensor], window: Window, algorithm: str) -> list[Tensor]:
    values, include_pad = inputs[0], bool(case.attributes.get("count_include_pad", 0))
    if window.dilation != [1, 1]:  # a convolution with a constant kernel, channel by channel
        channels = values.shape[1]
        height, width = window.kernel_size
        kernel = values.new_full((channels, 1, height, width), 1 / (height * width))
        return [conv2d(values, kernel, stride=window.stride, dilation=window.dilation, groups=channels)]
    ceil_mode = bool(case.attributes.get("ceil_mode", 0))
    if window.fits_a_pooling_layer():
        return [avg_pool2d(values, window.kernel_size, window.stride, window.begin, ceil_mode, include_pad)]
    padded = window.pad(values)
    counted = torch.ones_like(padded) if include_pad else window.pad(torch.ones_like(values))
    sums, counts = (
        avg_pool2d(item, window.kernel_size, window.stride, ceil_mode=ceil_mode, divisor_override=1)
        for item in (padded, counted)
    )
    return [sums / counts]
