"""Calls the functions of kernels.c, which `lenet.fast.kernels.compiler` compiles for the processor at hand."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lenet.fast.kernels.compiler import UnavailableError, library

ALIGNMENT = 64
"""In bytes, of whatever is loaded into a vector register; PyTorch allocates so."""

ACTIVATIONS = ("none", "sigmoid", "relu")
POOLINGS = ("average", "maximum")
"""In the order of the enumerations in lanes.h."""

KERNEL_SIZE = 5


class Shape(NamedTuple):
    """Of one of LeNet's blocks: channels that go in and come out, height and width of what goes in, and padding."""

    inputs: int
    channels: int
    size: int
    padding: int

    @property
    def pooled_size(self) -> int:
        """Height and width after the pooling."""
        return (self.size + 2 * self.padding - KERNEL_SIZE + 1) // 2


BLOCKS = {1: Shape(1, 6, 28, 2), 2: Shape(6, 16, 14, 0)}
"""As in block.h."""

CLASSES = 10

OUT_OF_MEMORY = 1
"""What a function of kernels.c returns then."""


class Kernels:
    """The functions of kernels.c.

    All tensors are on the CPU, and float32 unless said otherwise. Images lie in groups of `lanes`, side by side:
    (groups, channels, height, width, lanes).

    Raises:
        ValueError: by each method, for tensors of another type or shape.
    """

    def __init__(self, functions: ctypes.CDLL) -> None:
        pointer, whole, count, single = ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_float
        signatures: dict[str, tuple[type[ctypes.c_int] | None, list[type]]] = {
            "lane_count": (whole, []),
            "pack": (None, [pointer, whole, count, count, pointer, whole]),
            "unpack": (None, [pointer, count, count, pointer, whole]),
            "block_forward": (whole, [whole, *[pointer] * 3, whole, whole, count, pointer, pointer, whole]),
            "block_backward": (whole, [whole, *[pointer] * 5, whole, whole, count, *[pointer] * 3, whole]),
            "training_step": (
                whole,
                [*[pointer, whole, pointer, count, pointer, pointer], whole, whole, single, *[pointer] * 4, whole],
            ),
        }
        for name, (result, arguments) in signatures.items():
            function = getattr(functions, name)
            function.restype, function.argtypes = result, arguments
        self._c = functions
        self.lanes: int = functions.lane_count()

    def pack(self, images: Tensor) -> Tensor:
        """From images (N, ...), float32 or uint8, to groups (groups, ..., lanes), the last one filled up with zeros.

        Bytes 0–255 become numbers in [0, 1].
        """
        are_bytes = images.dtype == torch.uint8
        _expect(images, *images.shape, dtype=torch.uint8 if are_bytes else torch.float32)
        images = images.contiguous()
        count, *shape = images.shape
        groups = _empty(-(-count // self.lanes), *shape, self.lanes)
        self._c.pack(images.data_ptr(), are_bytes, count, math.prod(shape), groups.data_ptr(), torch.get_num_threads())
        return groups

    def unpack(self, groups: Tensor) -> Tensor:
        """From groups (groups, ..., lanes) to rows (groups·lanes, numbers in an image), one for each image."""
        _expect(groups, *groups.shape[:-1], self.lanes)
        groups = groups.contiguous()
        rows = _empty(len(groups) * self.lanes, math.prod(groups.shape[1:-1]))
        self._c.unpack(groups.data_ptr(), *rows.shape, rows.data_ptr(), torch.get_num_threads())
        return rows

    def block_forward(
        self, number: int, activation: str, pooling: str, values: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What a block's activation gives (groups, channels, height, width, lanes), and what pooling makes of that.

        Args:
            number: 1 or 2, which of LeNet's blocks.
            activation: one of ACTIVATIONS.
            pooling: one of POOLINGS.
            values: what goes into the convolution, (groups, channels, height, width, lanes).
            weight: of the convolution, (channels that come out, channels that go in, 5, 5).
            bias: (channels that come out,).

        Raises:
            MemoryError: there is none left.
        """
        shape = BLOCKS[number]
        _expect(values, len(values), shape.inputs, shape.size, shape.size, self.lanes)
        _expect(weight, shape.channels, shape.inputs, KERNEL_SIZE, KERNEL_SIZE)
        _expect(bias, shape.channels)
        values, weight, bias, half = _aligned(values), weight.contiguous(), bias.contiguous(), shape.pooled_size
        outputs = _empty(len(values), shape.channels, 2 * half, 2 * half, self.lanes)
        pooled = _empty(len(values), shape.channels, half, half, self.lanes)
        failure = self._c.block_forward(
            number,
            *(tensor.data_ptr() for tensor in (values, weight, bias)),
            ACTIVATIONS.index(activation),
            POOLINGS.index(pooling),
            len(values),
            outputs.data_ptr(),
            pooled.data_ptr(),
            torch.get_num_threads(),
        )
        if failure:
            raise MemoryError
        return outputs, pooled

    def block_backward(
        self,
        number: int,
        activation: str,
        pooling: str,
        weight: Tensor,
        values: Tensor,
        outputs: Tensor,
        pooled: Tensor,
        gradient: Tensor,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """From the gradient of `pooled`, of its shape, to those of the values, the weight and the bias.

        The first block's values are images, which have no use for a gradient: None. All other arguments are those of
        `block_forward`, and what it returned.

        Raises:
            MemoryError: there is none left.
        """
        _expect(gradient, *pooled.shape)
        values, gradient, weight = _aligned(values), _aligned(gradient), weight.contiguous()
        inner = torch.empty_like(values) if number > 1 else None
        of_weight, of_bias = torch.empty_like(weight), _empty(len(weight))
        failure = self._c.block_backward(
            number,
            *(tensor.data_ptr() for tensor in (values, weight, outputs, pooled, gradient)),
            ACTIVATIONS.index(activation),
            POOLINGS.index(pooling),
            len(values),
            None if inner is None else inner.data_ptr(),
            of_weight.data_ptr(),
            of_bias.data_ptr(),
            torch.get_num_threads(),
        )
        if failure:
            raise MemoryError
        return inner, of_weight, of_bias

    def training_step(
        self,
        activation: str,
        pooling: str,
        images: Tensor,
        labels: Tensor,
        scale: float,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        weight_gradients: Sequence[Tensor],
        bias_gradients: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """LeNet forward and back: the cross entropies of all images, summed up (), and the logits (N, 10).

        Args:
            activation: one of ACTIVATIONS, for all of its layers.
            pooling: one of POOLINGS.
            images: (N, 1, 28, 28), float32 or uint8.
            labels: (N,) int64.
            scale: of the loss that the gradients are of, as a multiple of the sum.
            weights: of the two convolutions and the three linear layers. These and the next three are not checked:
                LeNet's shapes, float32, contiguous.
            biases: the same.
            weight_gradients: where they are to be put.
            bias_gradients: the same.

        Raises:
            IndexError: a label is not one of 0 to 9.
            MemoryError: there is none left.
        """
        are_bytes = images.dtype == torch.uint8
        _expect(images, len(labels), 1, 28, 28, dtype=torch.uint8 if are_bytes else torch.float32)
        _expect(labels, len(labels), dtype=torch.int64)
        images, labels = images.contiguous(), labels.contiguous()
        loss, logits = _empty(), _empty(len(images), CLASSES)
        failure = self._c.training_step(
            images.data_ptr(),
            are_bytes,
            labels.data_ptr(),
            len(images),
            _addresses(weights),
            _addresses(biases),
            ACTIVATIONS.index(activation),
            POOLINGS.index(pooling),
            scale,
            _addresses(weight_gradients),
            _addresses(bias_gradients),
            logits.data_ptr(),
            loss.data_ptr(),
            torch.get_num_threads(),
        )
        if failure:
            raise MemoryError if failure == OUT_OF_MEMORY else IndexError("a label is not one of 0 to 9")
        return loss, logits


def load() -> Kernels:
    """The kernels for this machine, compiled if need be.

    Raises:
        UnavailableError: they cannot be compiled.
    """
    outcome = _outcome()
    if isinstance(outcome, UnavailableError):
        raise outcome.with_traceback(None)
    return outcome


@functools.cache
def _outcome() -> Kernels | UnavailableError:
    """Remembered, a failure too: a compiler that fails is not asked again."""
    try:
        return Kernels(library())
    except UnavailableError as error:
        return error


def _expect(tensor: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> None:
    if tensor.shape != shape or tensor.dtype != dtype or tensor.device.type != "cpu":
        raise ValueError(
            f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}, where {dtype} of shape {shape} on the"
            " CPU is needed"
        )


def _empty(*shape: int) -> Tensor:
    """For results, whatever the user has made the default type and device."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _aligned(tensor: Tensor) -> Tensor:
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()
