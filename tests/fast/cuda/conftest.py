"""The CUDA kernel on the CPU: lenet.cu compiled by g++, with emulate.h in the place of what only GPUs have."""

import ctypes
import functools
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from lenet.fast.cuda import compiler, launch
from lenet.fast.cuda.compiler import Kind, Variant

HERE = Path(__file__).parent
RISING, FALLING, SHUFFLED = range(3)
Library = Callable[[Variant], ctypes.CDLL]


@dataclass
class EmulatedKernel:
    """Runs the kernel with so many blocks, and their threads in such an order."""

    library: ctypes.CDLL
    variant: Variant
    kind: Kind
    blocks: int
    order: int = RISING

    def __call__(self, arguments: launch.Arguments) -> None:
        kind = map(int, self.kind)
        assert self.library.run_kernel(ctypes.byref(arguments), self.blocks, self.order, *kind), "a deadlock"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Compiles a variant of the kernel for the CPU, once."""
    if (gcc := shutil.which("g++")) is None or sys.platform != "linux":
        pytest.skip("needs g++ on Linux")

    @functools.cache
    def compiled(variant: Variant) -> ctypes.CDLL:
        path = tmp_path_factory.mktemp("emulated") / "kernel.so"
        macros = variant._asdict() | {"shared_bytes": variant.shared_bytes}
        command = [
            gcc,
            "-std=c++17",
            "-O1",
            "-ffp-contract=off",
            "-shared",
            "-fPIC",
            f"-I{HERE}",
            f"-I{compiler.SOURCES}",
        ]
        command += [f"-D{name.upper()}={int(value)}" for name, value in macros.items()]
        subprocess.run([*command, str(HERE / "emulate.cpp"), "-o", str(path)], check=True)
        return ctypes.CDLL(str(path))

    return compiled
