"""Compiles the C files beside this one for the processor at hand, and calls them.

The library is compiled when it is first needed, in about a second, and kept where Python keeps what it compiles itself.
Its name tells the sources, the options and the processor, so that none of these changes unnoticed. It needs GCC, since
its OpenMP is the one that PyTorch's threads come from: both then share the same threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import math
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

SOURCES = Path(__file__).parent
CACHE = SOURCES / "__pycache__"
OPTIONS = ("-std=gnu11", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-lm")
ALIGNMENT = 64
"""In bytes, of whatever is loaded into a vector register; PyTorch allocates so."""

ACTIVATIONS = ("none", "sigmoid", "relu")
POOLINGS = ("average", "maximum")
"""In the order of the enumerations in lanes.h."""

BLOCKS = {1: (6, 14), 2: (16, 5)}
"""Of LeNet's two blocks: channels, and height and width after the pooling."""

CLASSES = 10

OUT_OF_MEMORY = 1
"""What a function of kernels.c returns then."""


class UnavailableError(Exception):
    """Why the kernels cannot be had on this machine, in one line."""


class Kernels:
    """The functions of kernels.c. Parameters are expected as PyTorch keeps them, contiguous.

    Images lie in groups of `lanes`, side by side: (groups, channels, height, width, lanes). All tensors are float32
    unless said otherwise, on the CPU.

    Raises:
        OSError: the library cannot be loaded.
    """

    def __init__(self, library: Path) -> None:
        functions = ctypes.CDLL(str(library))
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
        images = images.contiguous()
        count, *shape = images.shape
        groups = torch.empty(-(-count // self.lanes), *shape, self.lanes)
        are_bytes, length = images.dtype == torch.uint8, math.prod(shape)
        self._c.pack(images.data_ptr(), are_bytes, count, length, groups.data_ptr(), torch.get_num_threads())
        return groups

    def unpack(self, groups: Tensor) -> Tensor:
        """From groups (groups, ..., lanes) to rows (groups·lanes, numbers in an image), one for each image."""
        groups = groups.contiguous()
        rows = torch.empty(len(groups) * self.lanes, math.prod(groups.shape[1:-1]))
        self._c.unpack(groups.data_ptr(), *rows.shape, rows.data_ptr(), torch.get_num_threads())
        return rows

    def block_forward(
        self, number: int, activation: str, pooling: str, values: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A block's activations (groups, channels, height, width, lanes), and what pooling makes of them.

        Args:
            number: 1 or 2, which of LeNet's blocks.
            activation: one of ACTIVATIONS.
            pooling: one of POOLINGS.

        Raises:
            MemoryError: there is none left.
        """
        (channels, size), values, weight = BLOCKS[number], _aligned(values), weight.contiguous()
        outputs = torch.empty(len(values), channels, 2 * size, 2 * size, self.lanes)
        pooled = torch.empty(len(values), channels, size, size, self.lanes)
        if self._c.block_forward(
            number,
            *(tensor.data_ptr() for tensor in (values, weight, bias)),
            ACTIVATIONS.index(activation),
            POOLINGS.index(pooling),
            len(values),
            outputs.data_ptr(),
            pooled.data_ptr(),
            torch.get_num_threads(),
        ):
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
        """From the gradient of `pooled` to those of the values, the weight and the bias.

        The first block's values are images, which have no use for a gradient: None.

        Raises:
            MemoryError: there is none left.
        """
        values, gradient, weight = _aligned(values), _aligned(gradient), weight.contiguous()
        inner = torch.empty_like(values) if number > 1 else None
        of_weight, of_bias = torch.empty_like(weight), weight.new_empty(len(weight))
        if self._c.block_backward(
            number,
            *(tensor.data_ptr() for tensor in (values, weight, outputs, pooled, gradient)),
            ACTIVATIONS.index(activation),
            POOLINGS.index(pooling),
            len(values),
            None if inner is None else inner.data_ptr(),
            of_weight.data_ptr(),
            of_bias.data_ptr(),
            torch.get_num_threads(),
        ):
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
            weights: of the two convolutions and the three linear layers.
            biases: the same.
            weight_gradients: where they are to be put.
            bias_gradients: the same.

        Raises:
            ValueError: images or labels are of another kind.
            IndexError: a label is not one of 0 to 9.
            MemoryError: there is none left.
        """
        if images.shape != (len(labels), 1, 28, 28) or labels.dtype != torch.int64:
            raise ValueError(f"images {tuple(images.shape)} and labels {tuple(labels.shape)} of {labels.dtype}")
        images, labels = images.contiguous(), labels.contiguous()
        loss, logits = torch.empty(()), torch.empty(len(images), CLASSES)
        failure = self._c.training_step(
            images.data_ptr(),
            images.dtype == torch.uint8,
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


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _aligned(tensor: Tensor) -> Tensor:
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


@functools.cache
def load() -> Kernels:
    """The kernels for this machine, compiled if need be.

    Raises:
        UnavailableError: they cannot be compiled.
    """
    compiler = shutil.which("gcc")
    if compiler is None:
        raise UnavailableError("there is no gcc on this machine")
    library = CACHE / f"kernels-{_fingerprint(compiler)}.so"
    with contextlib.suppress(OSError):  # not there, or damaged: compiled anew
        return Kernels(library)
    with _room() as room:
        part = Path(room) / "kernels.so"
        try:
            subprocess.run(
                [compiler, str(SOURCES / "kernels.c"), *OPTIONS, "-o", str(part)],
                check=True, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            kernels = Kernels(part)
        except subprocess.CalledProcessError as error:
            raise UnavailableError(
                f"gcc fails: {(error.stderr.strip().splitlines() or ['without a word'])[0]}"
            ) from None
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UnavailableError(f"gcc fails: {error}") from None
        # Moved into its place whole, so that of several processes none finds half of it.
        with contextlib.suppress(OSError):
            part.replace(library)
    return kernels


def _room() -> tempfile.TemporaryDirectory[str]:
    """A folder to compile in: where the library is to stay, or where that may not be written, another for this time."""
    try:
        CACHE.mkdir(exist_ok=True)
        return tempfile.TemporaryDirectory(dir=CACHE)
    except OSError:
        return tempfile.TemporaryDirectory()


def _fingerprint(compiler: str) -> str:
    """Changes with the source, the options, the compiler and the processor."""
    changed = Path(compiler).stat()
    sources = [source.read_bytes() for source in sorted(SOURCES.glob("*.[ch]"))]
    parts = [*sources, *OPTIONS, compiler, changed.st_mtime_ns, changed.st_size, _processor()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """What tells which instructions there are."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.lower().startswith(("flags", "features", "model"))}))
    return f"{platform.machine()} {platform.processor()}"
