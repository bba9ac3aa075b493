"""What can refuse a run before torch and Lightning are loaded, which takes seconds; training.run.check does the rest.

The names of the Trainer's arguments are read from Lightning's source, and a GPU that is nowhere in /dev is none.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Set
from pathlib import Path

from lenet.config import Device, Settings, did_you_mean
from lenet.errors import UserError

GPU_DEVICES = ("nvidia*", "nvhost*", "nvmap", "nvgpu*", "kfd", "dxg")
"""In /dev where there is a GPU that torch can use: NVIDIA's, Jetson's, AMD's, and that of Windows around a Linux."""


def check(settings: Settings) -> None:
    """Refuse arguments that Lightning's Trainer does not know, and devices that are not there.

    Raises:
        UserError: names the key that is wrong, its value and what would be right.
    """
    check_device(settings.device, None if gpu_is_possible() else 0)
    for name in settings.trainer.model_extra or {}:
        accepted = trainer_arguments()
        if name not in accepted:
            raise UserError(f"trainer.{name}: Lightning's Trainer has no such argument{did_you_mean(name, accepted)}")


def check_one_device(settings: Settings, remedy: str) -> None:
    """Refuse several devices, where many runs follow each other or go on side by side.

    Raises:
        UserError: says what to do instead.
    """
    for key in ("devices", "num_nodes"):
        if (number := getattr(settings.device, key)) > 1:
            raise UserError(f"device.{key}={number}: {remedy}")


def check_processes(settings: Settings) -> None:
    """Refuse to be several processes that do not train together.

    Raises:
        UserError: says how they would.
    """
    count, device = _started(), settings.device
    if started_elsewhere() and count != device.total:
        raise UserError(
            f"device.devices={device.devices}, device.num_nodes={device.num_nodes}: {device.total} in all, and {count}"
            " processes were started; start as many, with device=ddp, or one alone"
        )


def started_elsewhere() -> bool:
    """Whether this is one of several processes that torchrun or SLURM has started.

    Raises:
        UserError: what they have put into the environment is no number.
    """
    return "TORCHELASTIC_RUN_ID" in os.environ or (_started() > 1 and "SLURM_PROCID" in os.environ)


def rank() -> int:
    """Which of these processes this is; 0 is the first, and also one that is alone.

    Raises:
        UserError: as `started_elsewhere`.
    """
    return _number("RANK" if "RANK" in os.environ else "SLURM_PROCID") if started_elsewhere() else 0


def is_started_by_lightning() -> bool:
    """Whether another process of the same run has started this one.

    Raises:
        UserError: as `started_elsewhere`.
    """
    return "LOCAL_RANK" in os.environ and _number("LOCAL_RANK") != 0 and not started_elsewhere()


def is_first() -> bool:
    """Whether this is the only process of a run, or the first of several that train together.

    Raises:
        UserError: as `started_elsewhere`.
    """
    return not is_started_by_lightning() and rank() == 0


def _started() -> int:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return _number("WORLD_SIZE")
    # As Lightning, which takes a shell of SLURM's for no job.
    in_shell = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return 1 if in_shell or "SLURM_NTASKS" not in os.environ else _number("SLURM_NTASKS")


def _number(name: str) -> int:
    """What torchrun or SLURM has put into the environment."""
    value = os.environ.get(name, "")
    if not value.isdecimal():
        raise UserError(f"{name}={value}: should be a whole number in the environment of one of several processes")
    return int(value)


def check_device(device: Device, gpus: int | None) -> None:
    """Refuse a GPU where there is none, and more devices than there are.

    Args:
        device: what was asked for.
        gpus: how many GPUs this machine has; None if that is not known yet.

    Raises:
        UserError: the machine does not have what was asked for.
    """
    asked = f"device.devices={device.devices}: this machine has"
    if device.accelerator == "gpu" and gpus == 0:
        version = importlib.metadata.version("torch")
        raise UserError(f"device=gpu: torch {version} finds no GPU on this machine; use device=auto or device=cpu")
    if device.accelerator == "cpu" or gpus == 0:
        most = max(2, os.cpu_count() or 1)  # two processes are worth a try everywhere
        if device.devices > most:
            raise UserError(f"{asked} {os.cpu_count()} CPU cores; use at most {most}")
    elif gpus is not None and device.devices > gpus:
        raise UserError(f"{asked} {gpus} GPU{'s' * (gpus > 1)}; use at most {gpus}, or device.accelerator=cpu")


def gpu_is_possible() -> bool:
    """False, if it is certain that there is none."""
    devices = Path("/dev")
    return sys.platform != "linux" or any(next(devices.glob(pattern), None) for pattern in GPU_DEVICES)


@functools.cache
def trainer_arguments() -> Set[str]:
    """The names that Lightning's Trainer takes."""
    try:
        package = importlib.util.find_spec("lightning")
        if package is None or package.origin is None:
            raise ValueError("lightning is not in files")
        tree = ast.parse((Path(package.origin).parent / "pytorch" / "trainer" / "trainer.py").read_text())
        (trainer,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Trainer")
        (init,) = (node for node in trainer.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
        return {argument.arg for argument in (*init.args.args, *init.args.kwonlyargs)} - {"self"}
    except (OSError, SyntaxError, ValueError):  # its files lie elsewhere in this version: ask it
        import inspect

        from lightning.pytorch import Trainer

        return set(inspect.signature(Trainer).parameters)
