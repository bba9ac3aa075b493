"""Compiles the C files beside this one for the processor at hand.

The library is compiled when it is first needed, in about a second, and kept where Python keeps what it compiles itself.
Its name tells the sources, the options and the processor, so that none of these changes unnoticed. It needs GCC, since
its OpenMP is the one that PyTorch's threads come from: both then share the same threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent
CACHE = SOURCES / "__pycache__"
OPTIONS = ("-std=gnu11", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-lm")


class UnavailableError(Exception):
    """Why the kernels cannot be had on this machine, in one line."""


def library() -> ctypes.CDLL:
    """The functions of kernels.c, compiled if need be.

    Raises:
        UnavailableError: they cannot be compiled.
    """
    compiler = shutil.which("gcc")
    if compiler is None:
        raise UnavailableError("there is no gcc on this machine")
    try:
        kept = CACHE / f"kernels-{_fingerprint(compiler)}.so"
        with contextlib.suppress(OSError):  # not there, or damaged: compiled anew
            return _loaded(kept)
        with _scratch_folder() as scratch:
            part = Path(scratch) / "kernels.so"
            subprocess.run(
                [compiler, str(SOURCES / "kernels.c"), *OPTIONS, "-o", str(part)],
                check=True, capture_output=True, text=True, timeout=300, env=os.environ | {"LC_ALL": "C"},
            )  # fmt: skip
            functions = _loaded(part)
            # Moved into its place whole, so that of several processes none finds half of it.
            with contextlib.suppress(OSError):
                part.replace(kept)
            return functions
    except subprocess.CalledProcessError as error:
        raise UnavailableError(f"gcc fails: {_reason(error.stderr)}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"gcc fails: {error}") from None


def _loaded(path: Path) -> ctypes.CDLL:
    functions = ctypes.CDLL(str(path))
    if not hasattr(functions, "training_step"):
        raise OSError(f"{path} is another library")
    return functions


def _reason(output: str) -> str:
    """The line of a compiler's output that says what is wrong; lines before it may say where."""
    lines = output.strip().splitlines() or ["without a word"]
    return next((line for line in lines if "error" in line), lines[-1])


def _scratch_folder() -> tempfile.TemporaryDirectory[str]:
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
