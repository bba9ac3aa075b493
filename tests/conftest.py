"""What the tests share: the command line as a user calls it, the real images, and no network but this machine."""

from __future__ import annotations

import contextlib
import json
import os

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # Each of the workers gets its share of the processor; torch reads this when it is loaded.
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lenet.cli import compose_settings
from lenet.data import fashion_mnist
from lenet.errors import UserError
from lenet.fast.kernels import load
from lenet.fast.kernels.compiler import UnavailableError
from lenet.monitor import events
from lenet.training import run as training
from lenet.training.run import run
from tests.commands import PROJECT, Commands

# Drawn examples. The suite draws the same ones each time, so that its result depends on the code alone;
# --hypothesis-profile=explore draws many new ones. No deadline: the machine may be busy.
settings.register_profile("suite", deadline=None, database=None, derandomize=True, max_examples=25)
settings.register_profile("explore", deadline=None, database=None, print_blob=True, max_examples=1000)
settings.load_profile("suite")


notes: list[str] = []
"""What tests have to say at the end of a run, whether it passed or not."""


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # one of several processes
        session.config.workeroutput["notes"] = notes


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    notes.extend(getattr(node, "workeroutput", {}).get("notes", []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for note in notes:
        terminalreporter.write_line(note)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests of compiled kernels need what these need, except where a check of the project is to be complete."""
    if item.get_closest_marker("compiled") and "CI" not in os.environ:
        try:
            load()
        except UnavailableError as reason:
            pytest.skip(f"no compiled kernels: {reason}")


@pytest.fixture(autouse=True, scope="session")
def gpus_are_left_alone() -> Iterator[None]:
    """What is tested is true of the CPU, and on a GPU in part; tests.test_gpu says what is true there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture(autouse=True)
def random_numbers_of_its_own() -> None:
    """What a test draws from torch is the same in whatever order, or beside whichever others, it runs."""
    torch.manual_seed(0)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Torch computes with so many, however the suite is run: sums round otherwise with another number."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def garbage_is_left_alone() -> Iterator[None]:
    """A run in this process need not look for garbage among all that pytest has made: that is slower than the run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "objects_set_aside", contextlib.nullcontext)
        yield


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
    root = own if fashion_mnist.raw_folder(own).is_dir() else tmp_path_factory.mktemp("data")
    try:
        fashion_mnist.obtain(root, mirrors=[])
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
    def metrics(self) -> dict[str, Any]:
        metrics: dict[str, Any] = json.loads((self.folder / "metrics.json").read_text())
        return metrics

    @cached_property
    def events(self) -> EventAccumulator:
        return events.read(self.folder)

    def scalars(self, tag: str) -> list[tuple[int, float]]:
        """(step, value) of each point in TensorBoard."""
        return [(point.step, point.value) for point in self.events.Scalars(tag)]


TrainCommand = Callable[..., Finished]


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Runs this project's commands."""
    commands = Commands(tmp_path_factory.mktemp("commands"))
    yield commands
    commands.close()


@pytest.fixture(scope="session")
def train_command(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> TrainCommand:
    """Runs `python train.py OVERRIDES` in a run folder of its own, as a user would, but for what it loads."""

    def train(*overrides: str, folder: Path | None = None, cwd: Path | None = None) -> Finished:
        folder = folder or tmp_path_factory.mktemp("run") / "run"
        words = list(overrides)
        if not any(word.startswith(("-", "hydra.")) for word in overrides):
            words.append(f"hydra.run.dir={folder}")
        done = commands.run("train.py", *words, cwd=cwd or folder.parent)
        return Finished(done.returncode, done.stdout, done.stderr, folder)

    return train


def imported_by(*words: str, cwd: Path | None = None) -> tuple[set[str], subprocess.CompletedProcess[str]]:
    """The modules that `python train.py WORDS` loads, and how it ended."""
    command = [sys.executable, "-X", "importtime", str(PROJECT / "train.py"), *words]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    return {line.split("|")[-1].strip() for line in done.stderr.splitlines()}, done


@pytest.fixture
def train_here(tmp_path_factory: pytest.TempPathFactory) -> TrainCommand:
    """Trains in this process, which saves the seconds that a new one needs to load torch."""

    def train(*overrides: str) -> Finished:
        folder = tmp_path_factory.mktemp("run")
        run(compose_settings(PROJECT, *overrides), folder)
        return Finished(0, "", "", folder)

    return train


@pytest.fixture(scope="session")
def finished_run(train_command: TrainCommand) -> Finished:
    """One small run that several tests look at from different sides."""
    run = train_command(
        "data.train_size=6000",
        "data=synthetic",
        "model=lenet_relu",
        "optimizer=adam",
        "trainer.max_epochs=3",
        "scheduler=cosine",
    )
    assert run.status == 0, run.stderr
    return run
