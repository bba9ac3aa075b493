"""Runs that are killed, starved of disk space and damaged at random, then resumed and compared with undisturbed ones.

A round is survived exactly if weights, metrics and scalars are those of the undisturbed run, bit for bit, and nobody
had to do anything but resume. It is survived with a clear refusal if the program said in one line what is wrong, and
gave the same when that was put right (the damaged file back in its place, room on the disk). All else is a failure.
"""

import itertools
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from lenet.data import FashionMNIST
from lenet.folders import RESULT
from lenet.monitor.tensorboard import EVENT_FILES
from lenet.training.checkpoint import CHECKPOINTS, LAST, RUN_FILE
from tests.stress.sameness import differences

PROJECT = Path(__file__).resolve().parent.parent.parent

EXACTLY, REFUSED, FAILED = RESULTS = "survived exactly", "survived with a clear refusal", "failures"

FILES = {"checkpoint": ["*.ckpt"], "events": [EVENT_FILES], "config": [RUN_FILE, "*.yaml"], "data": ["*-ubyte"]}
"""What is damaged, by patterns for names of files."""

DAMAGES = [f"{damage} {kind}" for kind in FILES for damage in ("truncated", "flipped bit in")]
FAULTS = ["SIGKILL", "SIGTERM", "SIGINT", "full disk", *DAMAGES]

SYNTHETIC = ("data=synthetic", "data.train_size=4000", "data.test_size=500")
VARIANTS = {
    "sgd": SYNTHETIC,
    "adam": (*SYNTHETIC, "optimizer=adam", "model=lenet_norm", "model.dropout=0.2", "scheduler=onecycle"),
    "real": ("model=lenet_relu", "scheduler=cosine", "+trainer.limit_train_batches=15"),
}
"""Whose overrides; "real" trains on Fashion-MNIST, through Lightning's own loop over batches."""

DEVICES = {"cpu": ("device=cpu",), "gpu": ("device=gpu", "deterministic=true")}
"""The overrides of each device: on a GPU, runs are the same bit for bit only if that is asked for."""

TIMEOUT_SECONDS = 600
EARLY_SHARE = 0.25
"""So many runs are harmed while they start, the others from when they begin to train."""


class HarmError(Exception):
    """What should not have happened."""


class Process:
    """`python train.py` with these arguments; no file of it may grow beyond `file_size` bytes.

    `is_judged` is False if a signal came while Python itself started or ended, when the program has no handlers.
    """

    def __init__(self, project: Path, words: Sequence[str], file_size: int = resource.RLIM_INFINITY) -> None:
        self._started = time.time() - 0.02  # files have the time of the system's last tick
        self.status, self.stderr, self.is_judged = 0, "", True
        command = [sys.executable, str(project / "train.py"), *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
        )
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (file_size, file_size))

    def wait_for(self, path: Path) -> None:
        """Until the process has written the file, or has ended."""
        while self._process.poll() is None and not (path.exists() and path.stat().st_mtime >= self._started):
            time.sleep(0.01)

    def send(self, signum: signal.Signals) -> None:
        """Send it a signal, if it is still there."""
        if self._process.poll() is None:
            caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{self._process.pid}/status").read_text())
            self.is_judged = caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)
            self._process.send_signal(signum)

    def end(self) -> Self:
        """Wait for its end; raises a HarmError if that does not come."""
        try:
            _, self.stderr = self._process.communicate(timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise HarmError(f"has not ended within {TIMEOUT_SECONDS} seconds") from None
        self.status = self._process.returncode
        return self

    def __str__(self) -> str:
        return f"ended with {self.status}: {self.stderr}"


@dataclass
class Harm:
    """Rounds, and the undisturbed runs they are compared with."""

    project: Path  # has train.py
    folder: Path  # for all runs; those of failures stay
    data: Path  # Fashion-MNIST's root
    device: str = "cpu"
    seconds: dict[str, float] = field(default_factory=dict)  # that the undisturbed run of a variant took

    def play(self, rounds: int, seed: int, jobs: int) -> bool:
        """Play so many rounds, `jobs` at a time, and print a table. Returns whether there was no failure."""
        drawn = random.Random(seed)  # noqa: S311 - a seed that is printed is what is wanted here
        faults = list(itertools.islice(itertools.cycle(FAULTS), rounds))
        drawn.shuffle(faults)
        variants = ["real" if fault.endswith("data") else drawn.choice(list(VARIANTS)) for fault in faults]
        seeds = [drawn.randrange(2**32) for _ in faults]
        with ThreadPoolExecutor(jobs) as threads:
            list(threads.map(self._undisturbed, sorted(set(variants))))
            counts = Counter(threads.map(self._result, itertools.count(1), faults, variants, seeds))
        print("| fault |", " | ".join(RESULTS), "|\n|---|---|---|---|")
        for fault in FAULTS:
            print(f"| {fault} |", " | ".join(str(counts[fault, how]) for how in RESULTS), "|")
        return not any(counts[fault, FAILED] for fault in FAULTS)

    def words(self, variant: str, folder: Path, data: Path) -> list[str]:
        """The arguments of a new run."""
        root = [f"data.root={data}"] if variant == "real" else []
        saving = ["checkpoint.every_seconds=0", "trainer.max_epochs=4"]
        return [*VARIANTS[variant], *DEVICES[self.device], *saving, *root, f"hydra.run.dir={folder}"]

    def _undisturbed(self, variant: str) -> None:
        begin = time.monotonic()
        process = Process(self.project, self.words(variant, self.folder / variant, self.data)).end()
        if process.status != 0:
            raise HarmError(f"the undisturbed run {variant} {process}")
        self.seconds[variant] = time.monotonic() - begin

    def _result(self, number: int, fault: str, variant: str, seed: int) -> tuple[str, str]:
        folder = self.folder / f"round-{number}"
        try:
            how = Round(self, folder, fault, variant, random.Random(seed)).play()  # noqa: S311 - as above
            shutil.rmtree(folder)
        except Exception as error:  # of whatever kind, the other rounds go on
            how = FAILED
            print(f"round {number}, {fault}, {variant}, in {folder}: {error!r}", flush=True)
        return fault, how


class Round:
    """One run, and what happens to it, in a folder of its own that does not exist yet."""

    def __init__(self, harm: Harm, folder: Path, fault: str, variant: str, drawn: random.Random) -> None:
        self.harm, self.folder, self.fault, self.variant, self.drawn = harm, folder, fault, variant, drawn
        self.run, self.data, self.advice = folder / "run", harm.data, ""

    def play(self) -> str:
        """EXACTLY or REFUSED; raises a HarmError if it is neither."""
        self.run.mkdir(parents=True)
        play = self._full_disk if self.fault == "full disk" else self._damaged
        try:
            how = self._signalled() if self.fault.startswith("SIG") else play()
            lossy = self.fault.endswith(("disk", "events"))
            found = differences(self.harm.folder / self.variant, self.run, lossy)
        finally:
            if self.run.is_mount():
                subprocess.run(["umount", str(self.run)], check=False)  # noqa: S607 - wherever the system has it
        if found:
            raise HarmError(f"{len(found)} differences from the undisturbed run: {', '.join(found[:5])}")
        return how

    def _signalled(self) -> str:
        """Once or several times, also while it starts or resumes."""
        signum = signal.Signals[self.fault]
        for _ in range(self.drawn.choice([1, 1, 2, 3])):
            process = self._disturbed(signum)
            if process.status == 0:
                return EXACTLY  # it was faster
            is_clear = process.status == 128 + signum and process.stderr.count("\n") == 1
            if process.is_judged and process.status != -signal.SIGKILL and not is_clear:
                raise HarmError(f"{self.fault}: {process}")
            self.advice = process.stderr
        return self._finish(EXACTLY)

    def _full_disk(self) -> str:
        """A file system of its own in memory; where that may not be made, a limit on the size of files instead."""
        size = int(10 ** self.drawn.uniform(1, 3.4))  # KiB; a whole run takes about 2,000
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "lenet-stress", str(self.run)]
        is_mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        limit = resource.RLIM_INFINITY if is_mounted else size * 250
        process = Process(self.harm.project, self._words(), limit).end()
        if is_mounted:
            subprocess.run(["mount", "-o", "remount,size=200m", str(self.run)], check=True)  # noqa: S607 - as above
        return self._after(process)

    def _damaged(self) -> str:
        """Killed, then a file of it is harmed."""
        if self.fault.endswith("data"):
            self.data = self.folder
            shutil.copytree(FashionMNIST(self.harm.data).folder, FashionMNIST(self.data).folder)
        while self._disturbed(signal.SIGKILL, has_saved=True).status == 0 or (self.run / RESULT).exists():
            shutil.rmtree(self.run)  # it was faster: once more
        names = FILES[self.fault.split()[-1]]
        files = sorted(path for name in names for path in self.folder.rglob(name) if path.stat().st_size > 0)
        path = self.drawn.choice(files)
        backup = shutil.copy2(path, self.folder / "backup")
        content = bytearray(path.read_bytes())
        place = self.drawn.randrange(len(content))
        if self.fault.startswith("truncated"):
            del content[place:]
        else:
            content[place] ^= 1 << self.drawn.randrange(8)
        path.write_bytes(content)
        process = Process(self.harm.project, self._words()).end()
        if process.status != 0:
            shutil.copy2(backup, path)
        return self._after(process)

    def _words(self) -> list[str]:
        if (self.run / RUN_FILE).exists() or f"resume={self.run}" in self.advice:
            return [f"resume={self.run}"]
        # Ended before there was anything of it: whoever started it starts it again.
        shutil.rmtree(self.run, ignore_errors=True)
        return self.harm.words(self.variant, self.run, self.data)

    def _disturbed(self, signum: signal.Signals, has_saved: bool = False) -> Process:
        """A signal at a moment drawn: mostly while it trains, sometimes while it starts."""
        process = Process(self.harm.project, self._words())
        if has_saved:
            process.wait_for(self.run / CHECKPOINTS / LAST)
        elif self.drawn.random() >= EARLY_SHARE:
            process.wait_for(self.run / RUN_FILE)  # each start writes it anew, just before it trains
        time.sleep(self.drawn.uniform(0, self.harm.seconds[self.variant] / (6 if has_saved else 2)))
        process.send(signum)
        return process.end()

    def _after(self, process: Process) -> str:
        """What becomes of a run that ended by itself, now that all is in order again."""
        if process.status == 0:
            return EXACTLY
        if process.status < 0 or not process.stderr.startswith("error: ") or process.stderr.count("\n") != 1:
            raise HarmError(f"{self.fault}: {process}")
        self.advice = process.stderr
        return self._finish(REFUSED)

    def _finish(self, how: str) -> str:
        process = Process(self.harm.project, self._words()).end()
        if process.status != 0:
            raise HarmError(f"resumed: {process}")
        return how
