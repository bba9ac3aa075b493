"""The ONNX backend's node cases that our functions express as they are: inputs and outputs by other hands."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from lenet.layers.functional import ALGORITHMS, avg_pool2d, conv2d, conv_transpose2d, max_pool2d

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Conv": conv2d, "ConvTranspose": conv_transpose2d, "MaxPool": max_pool2d, "AveragePool": avg_pool2d,
}  # fmt: skip

ARGUMENTS = {"kernel_shape": "kernel_size", "strides": "stride", "dilations": "dilation", "group": "groups"}
ARGUMENTS |= {name: name for name in ("pads", "output_padding", "ceil_mode", "count_include_pad")}
"""By the names of ONNX's attributes."""

# As in PyTorch, padding is at most half of a pooling window, and there is no average of pixels apart.
NOT_COVERED = {f"test_averagepool_2d_{name}" for name in ("pads", "pads_count_include_pad", "dilations")}
NOT_COVERED |= {"test_maxpool_2d_pads"}


class Case(NamedTuple):
    name: str
    rtol: float
    atol: float
    operator: str
    arguments: dict[str, Any]
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
        attributes = {item.name: get_attribute_value(item) for item in node.attribute}
        if len(case.model.graph.node) == 1 and node.op_type in FUNCTIONS and attributes.keys() <= ARGUMENTS.keys():
            arguments = {"stride": 1} | {ARGUMENTS[name]: value for name, value in attributes.items()}
            arguments["padding"] = arguments.pop("pads", [0, 0])[:2]  # the others, at the opposite edges, are equal
            if node.op_type.startswith("Conv"):
                arguments.pop("kernel_size", None)  # the weight has it
            if node.op_type == "AveragePool":
                arguments.setdefault("count_include_pad", 0)
            for inputs, outputs in case.data_sets:
                if len(outputs) == 2:
                    arguments["return_indices"] = True
                tensors = [[torch.from_numpy(np.array(value)) for value in values] for values in (inputs, outputs)]
                yield Case(case.name, case.rtol, case.atol, node.op_type, arguments, *tensors)


CASES = [case for case in load_cases() if case.inputs[0].dim() == 4 and case.name not in NOT_COVERED]


def test_the_cases_were_found() -> None:
    # So many has onnx 1.22.
    assert Counter(case.operator for case in CASES) >= Counter(Conv=5, ConvTranspose=6, MaxPool=9, AveragePool=7)


PAIRS = [(case, name) for case in CASES for name in (ALGORITHMS if case.operator.startswith("Conv") else [""])]


@pytest.mark.parametrize(("case", "algorithm"), PAIRS, ids=[f"{case.name}-{name}".strip("-") for case, name in PAIRS])
def test_case(case: Case, algorithm: str) -> None:
    named = {"algorithm": algorithm} if algorithm else {}
    results = FUNCTIONS[case.operator](*case.inputs, **case.arguments, **named)
    expected = case.outputs if isinstance(results, tuple) else case.outputs[0]
    atol = 1e-5 if algorithm == "fft" else case.atol  # where zero is exact, a transform's rounding errors remain
    torch.testing.assert_close(results, expected, rtol=case.rtol, atol=atol)
