"""Compiles kernels.c for the processor at hand, and calls it.

The library is compiled when it is first needed, in about a second, and kept beside this file where Python keeps what it
compiles itself. Its name tells the source, the options and the processor, so that none of these changes unnoticed. It
needs GCC, since its OpenMP is the one that PyTorch's threads come from: both then share the same threads.
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
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("kernels.c")
CACHE = Path(__file__).with_name("__pycache__")
OPTIONS = ("-std=gnu11", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
ALIGNMENT = 64
"""In bytes, of whatever is loaded into a vector register; PyTorch allocates so."""

ACTIVATIONS = ("none", "sigmoid", "relu")
POOLINGS = ("average", "maximum")
"""In the order of the enumerations in kernels.c."""


class UnavailableError(Exception):
    """Why the kernels cannot be had on this machine, in one line."""


class Block(NamedTuple):
    """A convolution, an activation and a pooling, as kernels.c knows them.

    Attributes:
        number: which of LeNet's two.
        activation: one of ACTIVATIONS.
        pooling: one of POOLINGS.
    """

    number: int
    activation: str
    pooling: str

    @property
    def codes(self) -> tuple[int, int]:
        return ACTIVATIONS.index(self.activation), POOLINGS.index(self.pooling)

    @property
    def channels(self) -> int:
        return {1: 6, 2: 16}[self.number]

    @property
    def pooled_size(self) -> int:
        """Height and width after the pooling."""
        return {1: 14, 2: 5}[self.number]


class Kernels:
    """The functions of kernels.c.

    Images lie in groups of `lanes`, side by side: (groups, channels, height, width, lanes). All tensors are float32
    unless said otherwise, on the CPU.

    Raises:
        OSError: the library cannot be loaded.
    """

    def __init__(self, library: Path) -> None:
        functions, pointer, whole, count = ctypes.CDLL(str(library)), ctypes.c_void_p, ctypes.c_int, ctypes.c_long
        self.lanes: int = functions.lane_count()
        self._pack, self._unpack = functions.pack, functions.unpack
        self._forward, self._backward = functions.forward, functions.backward
        self._pack.argtypes = [pointer, whole, count, count, pointer, whole]
        self._unpack.argtypes = [pointer, count, count, pointer, whole]
        self._forward.argtypes = [whole, pointer, pointer, pointer, whole, whole, count, pointer, pointer, whole]
        self._backward.argtypes = [whole, *[pointer] * 5, whole, whole, count, pointer, pointer, pointer, whole]
        self._pack.restype = self._unpack.restype = None

    def pack(self, images: Tensor) -> Tensor:
        """From images (N, ...), float32 or uint8, to groups (groups, ..., lanes), the last one filled up with zeros.

        Bytes 0–255 become numbers in [0, 1].
        """
        images = images.contiguous()
        count, *shape = images.shape
        groups = torch.empty(-(-count // self.lanes), *shape, self.lanes)
        are_bytes, length = images.dtype == torch.uint8, math.prod(shape)
        self._pack(images.data_ptr(), are_bytes, count, length, groups.data_ptr(), torch.get_num_threads())
        return groups

    def unpack(self, groups: Tensor, count: int) -> Tensor:
        """From groups (groups, ..., lanes) back to `count` images, each as a row: (count, numbers in an image)."""
        groups, length = groups.contiguous(), math.prod(groups.shape[1:-1])
        images = torch.empty(count, length)
        self._unpack(groups.data_ptr(), count, length, images.data_ptr(), torch.get_num_threads())
        return images

    def forward(self, block: Block, values: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The activations (groups, channels, height, width, lanes), and what pooling makes of them.

        Raises:
            MemoryError: there is none left.
        """
        values, weight, bias = _aligned(values), weight.contiguous(), bias.contiguous()
        groups, size = len(values), block.pooled_size
        outputs = torch.empty(groups, block.channels, 2 * size, 2 * size, self.lanes)
        pooled = torch.empty(groups, block.channels, size, size, self.lanes)
        if self._forward(
            block.number,
            *(tensor.data_ptr() for tensor in (values, weight, bias)),
            *block.codes,
            groups,
            outputs.data_ptr(),
            pooled.data_ptr(),
            torch.get_num_threads(),
        ):
            raise MemoryError
        return outputs, pooled

    def backward(
        self, block: Block, values: Tensor, weight: Tensor, outputs: Tensor, pooled: Tensor, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """From the gradient of `pooled` to those of the values, the weight and the bias.

        The first block's values are images, which have no use for a gradient: None.

        Raises:
            MemoryError: there is none left.
        """
        values, gradient, weight = _aligned(values), _aligned(gradient), weight.contiguous()
        inner = torch.empty_like(values) if block.number > 1 else None
        of_weight, of_bias = torch.empty_like(weight), weight.new_empty(block.channels)
        if self._backward(
            block.number,
            *(tensor.data_ptr() for tensor in (values, weight, outputs, pooled, gradient)),
            *block.codes,
            len(values),
            None if inner is None else inner.data_ptr(),
            of_weight.data_ptr(),
            of_bias.data_ptr(),
            torch.get_num_threads(),
        ):
            raise MemoryError
        return inner, of_weight, of_bias


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
                [compiler, *OPTIONS, str(SOURCE), "-o", str(part)],
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
    parts = [SOURCE.read_bytes(), *OPTIONS, compiler, changed.st_mtime_ns, changed.st_size, _processor()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """What tells which instructions there are."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.lower().startswith(("flags", "features", "model"))}))
    return f"{platform.machine()} {platform.processor()}"
