"""Compiles kernels.c for this machine's processor.

The library is compiled when it is first needed, in about a second, and kept in `__pycache__`. Its name is a hash of the
sources, the options and the processor, so that a change of any of them compiles it anew. The compiler is GCC, because
PyTorch uses GCC's OpenMP, too: both then share the same threads.
"""

import contextlib
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from ctypes import CDLL
from pathlib import Path

SOURCES = Path(__file__).parent
CACHE = SOURCES / "__pycache__"
OPTIONS = ("-std=gnu11", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-lm")


class UnavailableError(Exception):
    """This machine cannot compile the kernels; says why in one line."""


@functools.cache
def load() -> CDLL:
    """The functions of kernels.c, compiled if need be; raises UnavailableError."""
    if (gcc := shutil.which("gcc")) is None:
        raise UnavailableError("there is no gcc on this machine")
    try:
        cached = CACHE / f"kernels-{_fingerprint(gcc)}.so"
        with contextlib.suppress(OSError):  # it is not there, or damaged
            return CDLL(str(cached))
        with tempfile.TemporaryDirectory() as scratch:
            new = Path(scratch) / "kernels.so"
            command = [gcc, str(SOURCES / "kernels.c"), *OPTIONS, "-o", str(new)]
            subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"})
            with contextlib.suppress(OSError):  # the cache cannot be written
                CACHE.mkdir(exist_ok=True)
                own = shutil.copy(new, cached.with_suffix(f".{os.getpid()}"))  # other processes may do the same now
                Path(own).replace(cached)
                return CDLL(str(cached))
            return CDLL(str(new))
    except subprocess.CalledProcessError as error:
        reason = next((line for line in error.stderr.splitlines() if "error" in line), f"status {error.returncode}")
        raise UnavailableError(f"gcc fails: {reason}") from None
    except OSError as error:
        raise UnavailableError(f"gcc fails: {error}") from None


def _fingerprint(gcc: str) -> str:
    """A hash of the sources, the options, the compiler and the processor's instructions."""
    parts: list[object] = [source.read_bytes() for source in sorted(SOURCES.glob("*.[ch]"))]
    parts += [*OPTIONS, gcc, Path(gcc).stat().st_mtime_ns, platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        parts += sorted({line for line in lines if line.lower().startswith(("flags", "features", "model"))})
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
