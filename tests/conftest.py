"""What the tests share: the command line as a user calls it, the real images, and no network but this machine."""

import os

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # Each of the workers gets its share of the processor; torch reads this when it is loaded.
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from lenet.config import compose_settings
from lenet.data import FashionMNIST
from lenet.errors import UserError
from lenet.fast.kernels.compiler import UnavailableError, load
from lenet.files import read_json
from lenet.monitor.tensorboard import read_events
from lenet.training import run as training
from tests.commands import PROJECT, Commands

# Drawn examples. The suite draws the same ones each time, so that its result depends on the code alone;
# --hypothesis-profile=explore draws many new ones. No deadline: the machine may be busy.
settings.register_profile("suite", deadline=None, database=None, derandomize=True, max_examples=25)
settings.register_profile("explore", deadline=None, database=None, print_blob=True, max_examples=1000)
settings.load_profile("suite")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests of compiled kernels where nothing can be compiled; but not in CI, where all tests have to run."""
    if item.get_closest_marker("compiled") and "CI" not in os.environ:
        try:
            load()
        except UnavailableError as reason:
            pytest.skip(f"no compiled kernels: {reason}")


@pytest.fixture(autouse=True, scope="session")
def no_gpu() -> Iterator[None]:
    """The tests run on the CPU; tests/test_gpu.py starts processes that see the GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws from torch does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process connect to this machine alone. (Programs that tests start are given data that is here.)"""
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"a test tried to reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


@pytest.fixture(scope="session")
def real_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root that holds the real images: the project's own, else one made of the system's copy."""
    own = PROJECT / "data"
    root = own if FashionMNIST(own).folder.is_dir() else tmp_path_factory.mktemp("data")
    try:
        FashionMNIST(root, mirrors=[]).prepare_data()
    except UserError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the real images are not here ('make data' obtains them): {error}")
    return root


@dataclass(frozen=True)
class Finished:
    """A finished `train.py`."""

    status: int
    stdout: str
    stderr: str
    folder: Path

    @cached_property
    def metrics(self) -> Any:
        return read_json(self.folder / "metrics.json")

    def scalars(self, tag: str) -> list[tuple[int, float]]:
        """(step, value) of each point in TensorBoard."""
        return [(point.step, point.value) for point in read_events(self.folder).Scalars(tag)]


TrainCommand = Callable[..., Finished]


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Runs this project's commands."""
    commands = Commands(tmp_path_factory.mktemp("commands"))
    yield commands
    commands.close()


@pytest.fixture(scope="session")
def train_command(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> TrainCommand:
    """Runs `python train.py OVERRIDES` in a run folder of its own, as a user would."""

    def train(*overrides: str, folder: Path | None = None, cwd: Path | None = None) -> Finished:
        folder = folder or tmp_path_factory.mktemp("run") / "run"
        words = list(overrides)
        if not any(word.startswith(("-", "hydra.", "resume=")) for word in overrides):
            words.append(f"hydra.run.dir={folder}")
        done = commands.run("train.py", *words, cwd=cwd or folder.parent)
        return Finished(done.returncode, done.stdout, done.stderr, folder)

    return train


@pytest.fixture
def train_here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> TrainCommand:
    """Trains in this process, which saves the seconds that a new one needs to load torch."""
    # The search for garbage among all that pytest has made takes longer than the run.
    monkeypatch.setattr(training, "garbage_collector_frozen", contextlib.nullcontext)

    def train(*overrides: str, folder: Path | None = None) -> Finished:
        folder = folder or tmp_path_factory.mktemp("run")
        training.run(compose_settings(*overrides), folder)
        return Finished(0, "", "", folder)

    return train


@pytest.fixture(scope="session")
def finished_run(train_command: TrainCommand) -> Finished:
    """One small run that several tests look at from different sides."""
    small = ("data=synthetic", "data.train_size=6000", "trainer.max_epochs=3")
    run = train_command(*small, "model=lenet_relu", "optimizer=adam", "scheduler=cosine")
    assert run.status == 0, run.stderr
    return run
