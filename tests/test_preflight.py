from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator

from lenet import preflight
from lenet.cli import compose_settings
from lenet.config import Device
from lenet.errors import UserError
from tests.commands import PROJECT


def test_the_trainers_arguments_are_those_of_its_signature() -> None:
    preflight.trainer_arguments.cache_clear()
    assert preflight.trainer_arguments() == set(inspect.signature(Trainer).parameters)


def test_a_lightning_whose_files_lie_elsewhere_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = importlib.util.spec_from_file_location("lightning", tmp_path / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: elsewhere)
    preflight.trainer_arguments.cache_clear()
    assert preflight.trainer_arguments() == set(inspect.signature(Trainer).parameters)


def test_where_torch_finds_a_gpu_one_is_possible() -> None:
    if not CUDAAccelerator.is_available():
        pytest.skip("torch finds no GPU here")
    assert preflight.gpu_is_possible()


def test_a_gpu_is_possible_where_dev_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.sys, "platform", "linux")  # type: ignore[attr-defined]
    monkeypatch.setattr(preflight, "GPU_DEVICES", ("no such device*",))
    assert not preflight.gpu_is_possible()
    monkeypatch.setattr(preflight, "GPU_DEVICES", ("no such device*", "nul*"))
    assert preflight.gpu_is_possible()


def test_a_gpu_is_asked_for_where_there_is_none() -> None:
    device = Device(accelerator="gpu", devices=1, num_nodes=1, strategy="auto")
    for gpus in (1, None):
        preflight.check_device(device, gpus)
    with pytest.raises(UserError, match=r"device=gpu: torch .* finds no GPU on this machine; use device=auto or"):
        preflight.check_device(device, gpus=0)


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "", "RANK": "0"}, "WORLD_SIZE="),
        ({"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "abc"}, "RANK=abc"),
        ({"SLURM_NTASKS": "abc", "SLURM_PROCID": "0"}, "SLURM_NTASKS=abc"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "-1"}, "SLURM_PROCID=-1"),
        ({"LOCAL_RANK": "abc"}, "LOCAL_RANK=abc"),
    ],
)
def test_what_is_wrong_in_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], named: str
) -> None:
    settings = compose_settings(PROJECT)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def look() -> None:
        preflight.is_first()
        preflight.check_processes(settings)

    with pytest.raises(UserError, match=f"{named}: should be a whole number"):
        look()


@pytest.mark.parametrize(("gpus", "named"), [(1, "1 GPU; use at most 1"), (2, "2 GPUs; use at most 2")])
def test_more_devices_than_there_are_gpus(gpus: int, named: str) -> None:
    device = Device(accelerator="auto", devices=3, num_nodes=1, strategy="ddp")
    with pytest.raises(UserError, match=rf"device\.devices=3: this machine has {named}, or device\.accelerator=cpu"):
        preflight.check_device(device, gpus)


@pytest.mark.parametrize("accelerator", ["auto", "cpu"])
def test_more_devices_than_there_are_cores(accelerator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.os, "cpu_count", lambda: 4)  # type: ignore[attr-defined]
    device = Device.model_validate({"accelerator": accelerator, "devices": 5, "num_nodes": 1, "strategy": "ddp"})
    with pytest.raises(UserError, match=r"device\.devices=5: this machine has 4 CPU cores; use at most 4"):
        preflight.check_device(device, gpus=0)
    if accelerator == "auto":
        for gpus in (5, None):  # there may be as many GPUs
            preflight.check_device(device, gpus)
