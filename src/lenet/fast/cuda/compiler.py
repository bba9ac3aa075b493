"""Compiles lenet.cu for a GPU, by NVRTC through cuda.bindings, both of which PyTorch brings along on Linux.

It takes a few seconds, and no GPU. The machine code is kept in `__pycache__`; its name is a hash of the sources, the
options, the architecture and NVRTC's version, so that a change of any of them compiles it anew.
"""

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

from lenet.fast.kernels.compiler import UnavailableError

SOURCES = Path(__file__).parent
CACHE = SOURCES / "__pycache__"
OPTIONS = ("--std=c++17",)


class Variant(NamedTuple):
    """How the kernel divides its work; the same names as in layout.cuh."""

    cluster: int
    images: int
    one_round: bool

    @property
    def shared_bytes(self) -> int:
        """How much shared memory a block needs; the compiler checks it."""
        return {(1, 1): 79_760, (1, 2): 131_200, (2, 1): 177_680, (2, 2): 229_120}[self.cluster, self.images]


class Kind(NamedTuple):
    """What the kernel computes; the optimizer is one of update.cuh's numbers."""

    relu: bool
    maximum: bool
    optimizer: int


def compile_kernel(variant: Variant, kind: Kind, capability: tuple[int, int]) -> bytes:
    """Machine code for GPUs of a compute capability; raises an UnavailableError."""
    if capability < (8, 0):
        raise UnavailableError(f"the GPU has compute capability {capability[0]}.{capability[1]}; the kernel needs 8.0")
    macros = (variant._asdict() | kind._asdict() | {"shared_bytes": variant.shared_bytes}).items()
    options = [*OPTIONS, "--gpu-architecture=sm_{}{}".format(*capability)]
    options += [f"-D{name.upper()}={int(value)}" for name, value in macros]
    sources = {path.name: path.read_bytes() for path in sorted([*SOURCES.glob("*.cu"), *SOURCES.glob("*.cuh")])}
    try:
        from cuda.bindings import nvrtc  # loads libraries, so not before it is needed

        version = _checked(nvrtc, nvrtc.nvrtcVersion())
        fingerprint = hashlib.sha256(repr((sources, options, version)).encode()).hexdigest()
        cached = CACHE / f"lenet-{fingerprint[:16]}.cubin"
        with contextlib.suppress(OSError):  # it is not there
            digest, code = cached.read_bytes()[:32], cached.read_bytes()[32:]
            if hashlib.sha256(code).digest() == digest:  # it is not damaged
                return code
        code = _compile(nvrtc, sources, options)
    except (ImportError, OSError, RuntimeError) as error:
        reason = next((line for line in str(error).splitlines() if "error" in line), str(error) or type(error).__name__)
        raise UnavailableError(f"the CUDA kernel cannot be compiled: {reason.splitlines()[0]}") from None
    with contextlib.suppress(OSError):  # the cache cannot be written
        CACHE.mkdir(exist_ok=True)
        own = cached.with_suffix(f".{os.getpid()}")  # other processes may do the same now
        own.write_bytes(hashlib.sha256(code).digest() + code)
        own.replace(cached)
    return code


def _compile(nvrtc: Any, sources: dict[str, bytes], options: list[str]) -> bytes:
    headers = {name.encode(): text for name, text in sources.items() if name.endswith(".cuh")}
    names, texts = list(headers), list(headers.values())
    program = _checked(nvrtc, nvrtc.nvrtcCreateProgram(sources["lenet.cu"], b"lenet.cu", len(names), texts, names))
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = bytes(_checked(nvrtc, nvrtc.nvrtcGetProgramLogSize(program)))
            nvrtc.nvrtcGetProgramLog(program, log)
            raise RuntimeError(log.decode(errors="replace").strip("\0 \n") or status.name)
        code = bytes(_checked(nvrtc, nvrtc.nvrtcGetCUBINSize(program)))
        _checked(nvrtc, nvrtc.nvrtcGetCUBIN(program, code))
        return code
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _checked(nvrtc: Any, result: tuple[Any, ...]) -> Any:
    """What a function of NVRTC returned, without its status; raises a RuntimeError if that is an error."""
    status, *values = result
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"NVRTC error {status.name}")
    return values[0] if len(values) == 1 else values
