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
from collections.abc import Sequence
from pathlib import Path

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

BLOCKS = {1: (6, 14), 2: (16, 5)}
"""Of LeNet's two blocks: channels, and height and width after the pooling."""

HEAD = (400, 120, 84, 10)
"""How many numbers an image has before, between and after LeNet's linear layers."""


class UnavailableError(Exception):
    """Why the kernels cannot be had on this machine, in one line."""


class Kernels:
    """The functions of kernels.c.

    Images lie in groups of `lanes`, side by side: (groups, channels, height, width, lanes). All tensors are float32
    unless said otherwise, on the CPU.

    Raises:
        OSError: the library cannot be loaded.
    """

    def __init__(self, library: Path) -> None:
        functions, pointer, whole, count = ctypes.CDLL(str(library)), ctypes.c_void_p, ctypes.c_int, ctypes.c_long
        signatures: dict[str, tuple[type[ctypes.c_int] | None, list[type]]] = {
            "lane_count": (whole, []),
            "pack": (None, [pointer, whole, count, count, pointer, whole]),
            "unpack": (None, [pointer, count, count, pointer, whole]),
            "block_forward": (whole, [whole, *[pointer] * 3, whole, whole, count, pointer, pointer, whole]),
            "block_backward": (whole, [whole, *[pointer] * 5, whole, whole, count, *[pointer] * 3, whole]),
            "head_forward": (None, [pointer, pointer, pointer, whole, count, whole]),
            "head_backward": (None, [pointer, pointer, pointer, whole, count, pointer, pointer, whole]),
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

    def head_forward(
        self, activation: str, values: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
    ) -> list[Tensor]:
        """Of LeNet's three linear layers, what comes out of each: (groups, HEAD[1], lanes) and so on.

        Args:
            activation: one of ACTIVATIONS; follows each but the last.
            values: what goes into the first, (groups, ..., lanes).
        """
        values, groups, weights = _aligned(values), len(values), [weight.contiguous() for weight in weights]
        outputs = [torch.empty(groups, count, self.lanes) for count in HEAD[1:]]
        self._c.head_forward(
            _addresses([values, *outputs]),
            _addresses(weights),
            _addresses(biases),
            ACTIVATIONS.index(activation),
            groups,
            torch.get_num_threads(),
        )
        return outputs

    def head_backward(
        self, activation: str, weights: Sequence[Tensor], values: Sequence[Tensor], gradient: Tensor
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """From the gradient of what comes out of the last layer to those of what goes in, the weights and the biases.

        Args:
            values: what went into each layer.
        """
        gradient, weights = _aligned(gradient), [weight.contiguous() for weight in weights]
        inner = [torch.empty_like(each) for each in values]
        of_weights = [torch.empty_like(weight) for weight in weights]
        of_biases = [weight.new_empty(len(weight)) for weight in weights]
        self._c.head_backward(
            _addresses([*inner, gradient]),
            _addresses(values),
            _addresses(weights),
            ACTIVATIONS.index(activation),
            len(gradient),
            _addresses(of_weights),
            _addresses(of_biases),
            torch.get_num_threads(),
        )
        return inner[0], of_weights, of_biases


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
