"""Runs that are killed, starved and damaged at random, resumed until they end, and compared with undisturbed ones.

A round starts `train.py` as a user would, does it some harm, resumes the run until it has ended, and compares. It is
survived exactly if weights, measures and curves are those of the undisturbed run, bit for bit, and nobody had to do
anything but resume. It is survived with a clear refusal if the program said in one line what is wrong, and gave the
same when that was put right (the damaged file back in its place, room on the disk). All else is a failure.
"""

from __future__ import annotations

import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from lenet.data import fashion_mnist
from lenet.errors import UserError
from tests.stress.sameness import differences

EXACTLY, REFUSED, FAILED = "survived exactly", "survived with a clear refusal", "failures"

SYNTHETIC = ("data=synthetic", "data.test_size=500", "trainer.max_epochs=5")
VARIANTS = {
    "sgd": (*SYNTHETIC, "checkpoint.every_seconds=0.2"),
    "adam": (*SYNTHETIC, "optimizer=adam", "model=lenet_norm", "scheduler=onecycle", "checkpoint.every_seconds=0"),
    "real": ("model=lenet_relu", "scheduler=cosine", "trainer.max_epochs=2", "checkpoint.every_seconds=0.1"),
}
"""Whose overrides; "real" trains on Fashion-MNIST."""

DEVICES = {"cpu": ("device=cpu",), "gpu": ("device=gpu", "deterministic=true")}
"""The overrides of each device: on a GPU, runs are the same bit for bit only if that is asked for."""

TIMEOUT_SECONDS = 300

EARLY_SHARE, STARTING_SECONDS, TRAINING_SECONDS = 0.15, 5, 1.5
"""So many runs are harmed within these seconds from their start, the others from when they have begun to train."""


class HarmError(Exception):
    """What should not have happened."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def refusal(self) -> str | None:
        """The one line that says what is wrong; None if the process said something else."""
        lines = self.stderr.splitlines()
        return lines[0] if self.status > 0 and len(lines) == 1 and lines[0].startswith("error: ") else None


class Round:
    """One run, and what happens to it.

    Args:
        project: has train.py.
        folder: does not exist; the round's own.
        fault: one of FAULTS.
        seed: of all that is drawn.
        references: the undisturbed runs, by variant.
        data: Fashion-MNIST's root.
        device: one of DEVICES.
    """

    def __init__(
        self, project: Path, folder: Path, fault: str, seed: int, references: dict[str, Path], data: Path, device: str
    ) -> None:
        self.project, self.folder, self.fault, self.references, self.data = project, folder, fault, references, data
        self.device = device
        self.random = random.Random(seed)  # noqa: S311 - a seed that is printed is what is wanted here
        self.variant = "real" if fault.endswith(" data") else self.random.choice(["sgd", "adam"])
        self.run = folder / "run"
        self.root = folder / "data"

    def result(self) -> str:
        """EXACTLY or REFUSED.

        Raises:
            HarmError: neither.
        """
        self.folder.mkdir(parents=True)
        with self._small_disk() if self.fault == "full disk" else nullcontext():
            how = getattr(self, f"_{self.fault.split()[0].lower()}")()
            found = differences(self.references[self.variant], self.run)
            if found:
                raise HarmError(f"differs from the undisturbed run: {', '.join(found)}")
        return str(how)

    # Each kind of fault

    def _sigkill(self) -> str:
        return self._stopped(signal.SIGKILL)

    def _sigterm(self) -> str:
        return self._stopped(signal.SIGTERM)

    def _sigint(self) -> str:
        return self._stopped(signal.SIGINT)

    def _stopped(self, signum: signal.Signals) -> str:
        """Once or several times, also while it starts or resumes."""
        for _ in range(self.random.choice([1, 1, 2, 3])):
            ended = self._disturbed(signum)
            if ended.status == 0:
                break  # it was faster
            if signum != signal.SIGKILL and (ended.status != 128 + signum or len(ended.stderr.splitlines()) != 1):
                raise HarmError(f"{signum.name}: ended with {ended.status}: {ended.stderr}")
        return self._until_the_end()

    def _full(self) -> str:
        ended = self._process(self._words()).wait_for_end()
        if ended.status != 0 and ended.refusal is None:
            raise HarmError(f"full disk: {ended.status}: {ended.stderr}")
        self._make_room()
        how = self._until_the_end()
        return how if ended.status == 0 else REFUSED

    def _truncated(self) -> str:
        return self._damaged(lambda path: os.truncate(path, self.random.randrange(path.stat().st_size)))

    def _flipped(self) -> str:
        return self._damaged(self._flip)

    def _flip(self, path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
        path.write_bytes(content)

    def _damaged(self, damage: Callable[[Path], None]) -> str:
        if self.variant == "real":
            self._data_of_its_own()
        while self._disturbed(signal.SIGKILL, begun=True).status == 0:
            shutil.rmtree(self.run)  # it was faster: once more
        files = [path for path in self._files(self.fault.split()[-1]) if path.stat().st_size > 0]
        if not files:
            return self._until_the_end()
        path = self.random.choice(files)
        backup = self.folder / "backup"
        shutil.copy2(path, backup)
        damage(path)
        ended = self._process(self._words()).wait_for_end()
        if ended.status == 0:
            return EXACTLY
        if ended.refusal is None:
            raise HarmError(f"{path.name} damaged: {ended.status}: {ended.stderr}")
        shutil.copy2(backup, path)
        self._until_the_end()
        return REFUSED

    def _files(self, kind: str) -> list[Path]:
        match kind:
            case "checkpoint":
                return sorted((self.run / "checkpoints").glob("*.ckpt"))
            case "events":
                return sorted(self.run.glob("events.*"))
            case "config":
                return [self.run / "run.json", *sorted((self.run / ".hydra").glob("*.yaml"))]
            case _:
                return sorted(fashion_mnist.raw_folder(self.root).glob("*-ubyte"))

    def _data_of_its_own(self) -> None:
        raw = fashion_mnist.raw_folder(self.root)
        raw.mkdir(parents=True)
        for file in fashion_mnist.FILES:
            shutil.copy2(fashion_mnist.raw_folder(self.data) / file.name, raw / file.name)

    # Starting, resuming, disturbing

    def _words(self) -> list[str]:
        if (self.run / "run.json").exists():
            return [f"resume={self.run}"]
        # Killed before there was anything of it: whoever started it starts it again.
        shutil.rmtree(self.run, ignore_errors=True)
        own_data = [f"data.root={self.root}"] if self.variant == "real" else []
        return [*VARIANTS[self.variant], *DEVICES[self.device], *own_data, f"hydra.run.dir={self.run}"]

    def _process(self, words: Sequence[str]) -> Process:
        limit = (
            1_000_000 if self.fault == "full disk" and not self._has_small_disk and "resume" not in words[0] else None
        )
        return Process(self.project, words, limit)

    def _disturbed(self, signum: signal.Signals, begun: bool = False) -> Ended:
        """A signal at a moment drawn: mostly while it trains, sometimes while it starts."""
        process = self._process(self._words())
        if begun or self.random.random() >= EARLY_SHARE:
            # Each start writes run.json anew, just before it trains.
            process.wait_for(self.run / "checkpoints" / "last.ckpt" if begun else self.run / "run.json")
            time.sleep(self.random.uniform(0, TRAINING_SECONDS))
        else:
            time.sleep(self.random.uniform(0.2, STARTING_SECONDS))  # before that it is Python that starts
        process.signal(signum)
        return process.wait_for_end()

    def _until_the_end(self) -> str:
        ended = self._process(self._words()).wait_for_end()
        if ended.status != 0:
            raise HarmError(f"resumed: {ended.status}: {ended.stderr}")
        return EXACTLY

    # A disk that is too small

    _has_small_disk = False

    @contextmanager
    def _small_disk(self) -> Iterator[None]:
        """A file system of its own in memory; where that may not be made, a limit on the size of files instead."""
        self.run.mkdir()
        size = self.random.randrange(100, 2500)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "lenet-chaos", str(self.run)]
        self._has_small_disk = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        try:
            yield
        finally:
            if self._has_small_disk:
                subprocess.run(["umount", str(self.run)], check=False)  # noqa: S607 - wherever the system has it

    def _make_room(self) -> None:
        if self._has_small_disk:
            subprocess.run(["mount", "-o", "remount,size=200m", str(self.run)], check=True)  # noqa: S607 - wherever the system has it


class Process:
    """`python train.py` with these words.

    Args:
        project: has it.
        words: its arguments.
        file_size: no file may grow beyond so many bytes.
    """

    def __init__(self, project: Path, words: Sequence[str], file_size: int | None = None) -> None:
        self._started = time.time() - 0.02  # files have the time of the system's last tick
        self._process = subprocess.Popen(
            [sys.executable, str(project / "train.py"), *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        if file_size is not None:
            resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (file_size, file_size))

    def wait_for(self, path: Path) -> None:
        """Until the process has written the file, or has ended."""
        end = time.monotonic() + TIMEOUT_SECONDS
        while not self._has_written(path) and self._process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)

    def _has_written(self, path: Path) -> bool:
        try:
            return path.stat().st_mtime >= self._started
        except FileNotFoundError:
            return False

    def signal(self, signum: signal.Signals) -> None:
        """Send it, if the process is still there."""
        self._process.send_signal(signum)

    def wait_for_end(self) -> Ended:
        """Raises a HarmError if it does not end."""
        try:
            stdout, stderr = self._process.communicate(timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise HarmError(f"has not ended within {TIMEOUT_SECONDS} seconds") from None
        return Ended(self._process.returncode, stdout, stderr)


FAULTS = (
    "SIGKILL", "SIGTERM", "SIGINT", "full disk",
    "truncated checkpoint", "flipped bit in checkpoint", "truncated events", "flipped bit in events",
    "truncated config", "flipped bit in config", "truncated data", "flipped bit in data",
)  # fmt: skip


def chaos(project: Path, folder: Path, rounds: int, seed: int, jobs: int, data: Path, device: str = "cpu") -> bool:
    """Go through the rounds, and print a table.

    Args:
        project: has train.py.
        folder: for all runs; those of failures stay.
        rounds: how many.
        seed: of all that is drawn.
        jobs: how many rounds at a time.
        data: Fashion-MNIST's root.
        device: one of DEVICES.

    Returns:
        Whether there was no failure.
    """
    drawn = random.Random(seed)  # noqa: S311 - the same
    references = {name: folder / f"undisturbed-{name}" for name in VARIANTS}
    for name, place in references.items():
        root = [f"data.root={data}"] if name == "real" else []
        ended = Process(project, [*VARIANTS[name], *DEVICES[device], *root, f"hydra.run.dir={place}"]).wait_for_end()
        if ended.status != 0:
            raise UserError(f"the undisturbed run {name} failed: {ended.stderr}")
    faults = list(itertools.islice(itertools.cycle(FAULTS), rounds))
    drawn.shuffle(faults)

    def play(number: int, fault: str, its_seed: int) -> tuple[str, str]:
        place = folder / f"round-{number}"
        try:
            how = Round(project, place, fault, its_seed, references, data, device).result()
            shutil.rmtree(place)
        except Exception as error:  # of whatever kind, the other rounds go on
            how = FAILED
            print(f"round {number}, {fault}, in {place}: {error!r}", flush=True)
        return fault, how

    with ThreadPoolExecutor(jobs) as threads:
        seeds = [drawn.randrange(2**32) for _ in faults]
        counts = Counter(threads.map(play, itertools.count(1), faults, seeds))
    print(_table(counts))
    return not any(how == FAILED for _, how in counts)


def _table(counts: Counter[tuple[str, str]]) -> str:
    lines = [f"| fault | times injected | {EXACTLY} | {REFUSED} | {FAILED} |", "|---|---|---|---|---|"]
    for fault in FAULTS:
        row = [counts[fault, how] for how in (EXACTLY, REFUSED, FAILED)]
        lines.append(f"| {fault} | {sum(row)} | {row[0]} | {row[1]} | {row[2]} |")
    total = [sum(counts[fault, how] for fault in FAULTS) for how in (EXACTLY, REFUSED, FAILED)]
    return "\n".join([*lines, f"| all | {sum(total)} | {total[0]} | {total[1]} | {total[2]} |"])
