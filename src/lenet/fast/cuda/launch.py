"""Loads the kernel of lenet.cu on a GPU, and launches it.

Its blocks wait for each other, so all must run at once: a cooperative launch fails if they cannot, instead of hanging.
"""

from collections.abc import Callable, Sequence
from ctypes import Structure, addressof, c_int, c_void_p
from typing import Any, Protocol

import torch
from torch import Tensor

from lenet.fast.cuda.compiler import Kind, Variant, compile_kernel
from lenet.fast.kernels.compiler import UnavailableError

THREADS, PARAMETERS, KEPT, PARTIAL = 512, 10, 820, 2576  # as in layout.cuh
VARIANTS = [Variant(*each) for each in ((2, 1, True), (2, 2, True), (2, 2, False), (1, 2, False), (1, 1, False))]
"""The fastest first, as far as they suit a GPU and a batch."""
POINTERS = ("images", "labels", "order", "starts", "coefficients")
TENSORS = ("parameters", "gradients", "first", "second")
RESULTS = ("workspace", "losses", "correct", "arrivals")


class Arguments(Structure):
    """The struct of the same name in layout.cuh, which explains its fields."""

    _fields_ = (
        *((name, c_void_p) for name in POINTERS),
        *((name, c_void_p * PARAMETERS) for name in TENSORS),
        *((name, c_void_p) for name in RESULTS),
        ("steps", c_int),
        ("room", c_int),
    )


class Kernel(Protocol):
    """A kernel that is ready to be launched, with so many blocks."""

    variant: Variant
    blocks: int

    def __call__(self, arguments: Arguments) -> None: ...


Loader = Callable[[Kind, torch.device, int], Kernel]
"""From a kind, a device and the number of images in the largest batch to a kernel; raises an UnavailableError."""


def arguments(tensors: dict[str, Tensor | Sequence[Tensor]], steps: int, room: int) -> Arguments:
    """The tensors' addresses; they must outlive the launch."""
    values: dict[str, Any] = {"steps": steps, "room": room}
    for name, value in tensors.items():
        if isinstance(value, Tensor):
            values[name] = value.data_ptr()
        else:
            values[name] = (c_void_p * PARAMETERS)(*(each.data_ptr() for each in value))
    return Arguments(**values)


def load(kind: Kind, device: torch.device, batch_size: int) -> Kernel:
    """The kernel for a GPU, in the first variant that it can run and that suits batches of this size."""
    if device.type != "cuda":
        raise UnavailableError(f"the CUDA kernel needs a GPU, and the parameters are on {device}")
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    capability, available = torch.cuda.get_device_capability(device), _shared_memory(device)
    reason = UnavailableError(f"the CUDA kernel needs more shared memory than this GPU's {available} bytes")
    for variant in VARIANTS:
        if variant.shared_bytes > available or (variant.cluster > 1 and capability < (9, 0)):
            continue  # the GPU cannot run it
        if variant.one_round and batch_size > processors * variant.images:
            continue
        if variant == (1, 2, False) and batch_size <= processors:
            continue  # one image a block is faster
        try:
            kernel = LoadedKernel(variant, kind, device, capability)
        except UnavailableError as error:
            reason = error
            continue
        if not variant.one_round or batch_size <= kernel.blocks * variant.images:  # pairs may leave processors over
            return kernel
    raise reason


def _shared_memory(device: torch.device) -> int:
    """How much a block may have, in bytes."""
    driver = _driver()
    attribute = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    handle = _checked(driver, driver.cuDeviceGet(torch.device(device).index or 0))
    return int(_checked(driver, driver.cuDeviceGetAttribute(attribute, handle)))


class LoadedKernel:
    """A `Kernel` on a GPU."""

    def __init__(self, variant: Variant, kind: Kind, device: torch.device, capability: tuple[int, int]) -> None:
        self.variant, self._device, self._driver = variant, device, _driver()
        code, driver = compile_kernel(variant, kind, capability), self._driver
        with torch.cuda.device(device):
            torch.zeros(1, device=device)  # makes PyTorch's context this thread's
            self._module = _checked(driver, driver.cuModuleLoadData(code))
            self._function = _checked(driver, driver.cuModuleGetFunction(self._module, b"train"))
            limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _checked(driver, driver.cuFuncSetAttribute(self._function, limit, variant.shared_bytes))
            self.blocks = self._blocks_at_once()
        if not self.blocks:
            raise UnavailableError(f"the CUDA kernel cannot run on {torch.cuda.get_device_name(device)}")
        self(Arguments(steps=0))  # does nothing, but would be refused as any launch

    def _blocks_at_once(self) -> int:
        driver, size = self._driver, self.variant.shared_bytes
        if self.variant.cluster > 1:
            # A cluster runs within one of the groups that multiprocessors are in; the driver knows how many fit.
            attribute = driver.CUlaunchAttribute()
            attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
            dimension = attribute.value.clusterDim
            dimension.x, dimension.y, dimension.z = self.variant.cluster, 1, 1
            config = self._config(128 * self.variant.cluster, attribute)
            clusters = _checked(driver, driver.cuOccupancyMaxActiveClusters(self._function, config))
            return int(clusters) * self.variant.cluster
        count = driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(self._function, THREADS, size)
        return int(_checked(driver, count)) * torch.cuda.get_device_properties(self._device).multi_processor_count

    def _config(self, blocks: int, attribute: Any) -> Any:
        config = self._driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = blocks, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = THREADS, 1, 1
        config.sharedMemBytes, config.attrs, config.numAttrs = self.variant.shared_bytes, [attribute], 1
        return config

    def __call__(self, arguments: Arguments) -> None:
        """Launch it on PyTorch's current stream, without waiting for it."""
        driver = self._driver
        attribute = driver.CUlaunchAttribute()
        attribute.id, attribute.value.cooperative = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE, 1
        config = self._config(self.blocks, attribute)
        pointers = (c_void_p * 1)(addressof(arguments))  # the arguments are copied before the call returns
        with torch.cuda.device(self._device):
            config.hStream = driver.CUstream(torch.cuda.current_stream().cuda_stream)
            _checked(driver, driver.cuLaunchKernelEx(config, self._function, addressof(pointers), 0))


def _driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise UnavailableError(f"the CUDA kernel cannot be launched: {error}") from None
    return driver


def _checked(driver: Any, result: tuple[Any, ...]) -> Any:
    """What a function of the driver returned, without its status; raises an UnavailableError if that is an error."""
    status, *values = result
    if status != driver.CUresult.CUDA_SUCCESS:
        raise UnavailableError(f"the CUDA kernel cannot be launched: {status.name}")
    return values[0] if values else None
