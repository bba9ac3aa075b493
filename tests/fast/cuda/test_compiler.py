"""Compiling for GPUs, keeping what was compiled, choosing a variant, and the calls of the driver; all without a GPU."""

import ctypes
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lenet.fast import UnavailableError
from lenet.fast.cuda import compiler, launch
from lenet.fast.cuda.compiler import Kind, Variant, compile_kernel
from tests.fast.cuda.conftest import Library

nvrtc = pytest.importorskip("cuda.bindings.nvrtc")
KIND = Kind(relu=True, maximum=True, optimizer=2)
PORTABLE, CLUSTER = Variant(1, 1, False), Variant(2, 2, True)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another kernel, which is compiled in no time."""
    monkeypatch.setattr(compiler, "SOURCES", tmp_path)
    monkeypatch.setattr(compiler, "CACHE", tmp_path / "cache")
    (tmp_path / "part.cuh").write_text("__device__ int one() { return 1; }\n")
    source = tmp_path / "lenet.cu"
    source.write_text('#include "part.cuh"\nextern "C" __global__ void train(int *a) { *a = one(); }\n')
    return source


@pytest.mark.parametrize("case", [0, *(pytest.param(each, marks=pytest.mark.long) for each in range(1, 7))])
def test_nvrtc_compiles_it(case: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    portable = [(PORTABLE, (8, 6)), (PORTABLE, (8, 0)), (Variant(1, 2, False), (8, 0)), (PORTABLE, (12, 0))]
    clusters = [(CLUSTER, (9, 0)), (Variant(2, 2, False), (9, 0)), (Variant(2, 1, True), (10, 0))]
    variant, capability = [*portable, *clusters][case]
    monkeypatch.setattr(compiler, "CACHE", tmp_path)
    code = compile_kernel(variant, KIND, capability)
    assert code.startswith(b"\x7fELF")
    assert b"train" in code


@pytest.mark.parametrize("variant", [PORTABLE, CLUSTER])
def test_python_knows_the_sizes(library: Library, variant: Variant) -> None:
    compiled = library(variant)
    assert compiled.shared_bytes() == variant.shared_bytes
    assert compiled.argument_bytes() == ctypes.sizeof(launch.Arguments)
    assert compiled.workspace_floats(3, 5) == 3 * launch.KEPT + 5 * launch.PARTIAL


def test_it_is_compiled_once(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = compile_kernel(PORTABLE, KIND, (8, 0))
    (cached,) = compiler.CACHE.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(nvrtc, "nvrtcCompileProgram", None)
        assert compile_kernel(PORTABLE, KIND, (8, 0)) == code
    cached.write_bytes(cached.read_bytes()[:-1])  # damaged
    assert compile_kernel(PORTABLE, KIND, (8, 0)) == code
    compile_kernel(PORTABLE, KIND, (9, 0))
    compile_kernel(PORTABLE, KIND._replace(relu=False), (8, 0))
    (small.parent / "part.cuh").write_text("__device__ int one() { return 2 - 1; }\n")
    compile_kernel(PORTABLE, KIND, (8, 0))
    assert len(list(compiler.CACHE.iterdir())) == 4


def test_a_cache_that_cannot_be_written_is_not_needed(small: Path) -> None:
    compiler.CACHE.write_text("not a folder")
    assert compile_kernel(PORTABLE, KIND, (8, 0))


def test_what_cannot_be_compiled_says_why(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnavailableError, match=r"7\.5.*8\.0"):
        compile_kernel(PORTABLE, KIND, (7, 5))
    with pytest.raises(UnavailableError, match="architecture"):
        compile_kernel(PORTABLE, KIND, (99, 0))
    small.write_text("int = 3;")
    with pytest.raises(UnavailableError, match=r"lenet\.cu\(1\): error") as error:
        compile_kernel(PORTABLE, KIND, (8, 0))
    assert "\n" not in str(error.value)
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings", None)
    with pytest.raises(UnavailableError, match=r"cuda\.bindings"):
        compile_kernel(PORTABLE, KIND, (8, 0))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[int, int], int, int], None]:
    """A GPU of such a capability, so many multiprocessors, and so much shared memory."""

    def pretend(capability: tuple[int, int], processors: int, shared: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        properties = SimpleNamespace(multi_processor_count=processors)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        monkeypatch.setattr(launch, "_shared_memory", lambda _: shared)

    return pretend


GPUS = {
    "H100": ((9, 0), 132, 227 << 10),
    "of odd size": ((9, 0), 133, 227 << 10),
    "A100": ((8, 0), 108, 163 << 10),
    "RTX 4090": ((8, 9), 128, 99 << 10),
    "RTX 5090": ((12, 0), 170, 99 << 10),
}
CHOICES = [("H100", 64, (2, 1, True)), ("H100", 256, (2, 2, True)), ("H100", 265, (2, 2, False))]
CHOICES += [("of odd size", 133, (2, 2, True)), ("A100", 64, (1, 1, False)), ("A100", 256, (1, 2, False))]
CHOICES += [("RTX 4090", 256, (1, 1, False)), ("RTX 5090", 8192, (1, 1, False))]


@pytest.mark.parametrize(("name", "batch_size", "expected"), CHOICES)
def test_the_variant_suits_gpu_and_batch(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, name: str, batch_size: int, expected: tuple[int, int, bool]
) -> None:
    class Loaded:
        def __init__(self, variant: Variant, *_: Any) -> None:
            self.variant, self.blocks = variant, GPUS[name][1] // variant.cluster * variant.cluster

    gpu(*GPUS[name])
    monkeypatch.setattr(launch, "LoadedKernel", Loaded)
    assert launch.load(KIND, torch.device("cuda:0"), batch_size).variant == expected


def test_gpus_with_too_little_memory_and_cpus_are_refused(gpu: Any) -> None:
    gpu((8, 0), 10, 64 << 10)
    with pytest.raises(UnavailableError, match="shared memory"):
        launch.load(KIND, torch.device("cuda:0"), 8)
    with pytest.raises(UnavailableError, match="cpu"):
        launch.load(KIND, torch.device("cpu"), 8)


@pytest.mark.parametrize(("variant", "blocks"), [(PORTABLE, 264), (CLUSTER, 130)])
def test_a_launch_is_cooperative_with_as_many_blocks_as_run_at_once(
    gpu: Any, small: Path, monkeypatch: pytest.MonkeyPatch, variant: Variant, blocks: int
) -> None:
    driver, found = launch._driver(), []
    success = driver.CUresult.CUDA_SUCCESS

    def start(config: Any, function: int, parameters: int, extra: int) -> tuple[Any]:
        pointer = ctypes.cast(parameters, ctypes.POINTER(ctypes.c_void_p))[0]
        steps = ctypes.cast(pointer or 0, ctypes.POINTER(launch.Arguments))[0].steps
        (attribute,) = config.attrs
        assert (attribute.id, attribute.value.cooperative) == (driver.CUlaunchAttributeID(2), 1)
        found.append((config.gridDimX, config.blockDimX, config.sharedMemBytes, int(config.hStream), function, steps))
        return (success,)

    answers = {
        "cuModuleLoadData": lambda code: (success, 1),
        "cuModuleGetFunction": lambda module, name: (success, 2),
        "cuFuncSetAttribute": lambda function, attribute, value: (success,),
        "cuOccupancyMaxActiveClusters": lambda function, config: (success, 65),
        "cuOccupancyMaxActiveBlocksPerMultiprocessor": lambda function, threads, shared: (success, 2),
        "cuLaunchKernelEx": start,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(driver, name, answer)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=77))
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    gpu(*GPUS["H100"])
    kernel = launch.LoadedKernel(variant, KIND, torch.device("cuda:0"), (9, 0))
    kernel(launch.Arguments(steps=5))
    expected = [
        (blocks, launch.THREADS, variant.shared_bytes, 77, 2, steps) for steps in (0, 5)
    ]  # the first is a trial
    assert found == expected
    monkeypatch.setattr(driver, "cuLaunchKernelEx", lambda *_: (driver.CUresult.CUDA_ERROR_INVALID_VALUE,))
    with pytest.raises(UnavailableError, match="CUDA_ERROR_INVALID_VALUE"):
        launch.load(KIND, torch.device("cuda:0"), 256)
