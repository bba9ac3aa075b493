"""The CUDA kernel on the CPU: lenet.cu compiled by g++ with emulate.h."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from lenet.fast.cuda import compiler, launch
from lenet.fast.cuda.compiler import Kind, Variant
from tests.commands import PROJECT

RISING, FALLING, SHUFFLED = range(3)


@dataclass
class EmulatedKernel:
    """Runs the kernel with so many blocks, and its threads in such an order."""

    library: ctypes.CDLL
    variant: Variant
    kind: Kind
    blocks: int
    order: int

    def __call__(self, arguments: launch.Arguments) -> None:
        kind = (int(each) for each in self.kind)
        ended = self.library.run_kernel(ctypes.byref(arguments), self.blocks, self.order, *kind)
        assert ended, "threads wait for each other"


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Variant], ctypes.CDLL]:
    """Compiles a variant of the kernel for the CPU, once."""
    made: dict[Variant, ctypes.CDLL] = {}

    def library(variant: Variant) -> ctypes.CDLL:
        if (gcc := shutil.which("g++")) is None:
            pytest.skip("there is no g++")
        if variant not in made:
            macros = variant._asdict() | {"shared_bytes": variant.shared_bytes}
            path = tmp_path_factory.mktemp("emulated") / "kernel.so"
            # Multiply-adds are not fused, so that they round alike in all orders of threads.
            command = [gcc, "-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", f"-I{compiler.SOURCES}"]
            command += [f"-D{name.upper()}={int(value)}" for name, value in macros.items()]
            subprocess.run([*command, str(PROJECT / "tests/fast/cuda/emulate.cpp"), "-o", str(path)], check=True)
            made[variant] = ctypes.CDLL(str(path))
        return made[variant]

    return library
