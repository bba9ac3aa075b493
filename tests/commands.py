"""This project's commands as tests run them: each in a process of its own, without the seconds that loading takes.

A server loads torch and Lightning once, and each command is a fork of it: its arguments, environment, folder, output,
signals and exit status are those of a command that a shell starts.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent


@dataclass
class Command:
    """A command that was started.

    Attributes:
        pid: its process, which leads a group of its own.
        returncode: its exit status, below zero for a signal; None until one of the methods has seen it end.
    """

    commands: "Commands"
    pid: int
    words: list[str]
    outputs: list[Path]
    returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        if self.returncode is None:
            self.returncode = self.commands.ask(ended=self.pid)
        return self.returncode

    def wait(self, timeout: float = 60) -> int:
        """Its exit status, when it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not, after `timeout` seconds.
        """
        end = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.words, timeout)
            time.sleep(0.005)
        return status

    def send_signal(self, signum: int) -> None:
        """Send it a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def processes(self) -> list[int]:
        """The living processes of its session: itself and those that it started. (For Linux.)"""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:  # it has ended meanwhile
                continue
            if int(session) == self.pid and state != "Z":
                found.append(int(folder.name))
        return found

    def communicate(self, timeout: float = 60) -> list[str]:
        """What it has written to stdout and stderr, when it has ended."""
        self.wait(timeout)
        return [path.read_text(errors="replace") for path in self.outputs]


def wait_for(path: Path, process: Command) -> None:
    """Return when the process has made the file or folder; it must not end before."""
    end = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.005)


class Commands:
    """Starts them. `folder` gets what they write to stdout and stderr."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.command_server"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT,
        )  # fmt: skip

    def start(
        self, script: str, *words: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> Command:
        """Start `python SCRIPT WORDS`, with the script's path in the project, and this in its environment besides."""
        self._count += 1
        outputs = [self._folder / f"{self._count}.{name}" for name in ("stdout", "stderr")]
        command = [str(PROJECT / script), *words]
        environment = {**os.environ, **(environment or {})}
        pid = self.ask(
            words=command, folder=str(cwd or Path.cwd()), environment=environment, outputs=[*map(str, outputs)]
        )
        return Command(self, pid, command, outputs)

    def run(self, script: str, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Start it and wait for its end."""
        command = self.start(script, *words, cwd=cwd)
        out, errors = command.communicate(timeout=120)
        return subprocess.CompletedProcess([script, *words], command.wait(), out, errors)

    def start_together(self, *words: str, nodes: int = 1, cwd: Path | None = None) -> list[Command]:
        """Start `train.py WORDS` twice, as torchrun does: on one machine, or as if on two."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        per_node = 2 // nodes
        shared = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none",
            "LOCAL_WORLD_SIZE": str(per_node), "GROUP_WORLD_SIZE": str(nodes),
        }  # fmt: skip
        ranks = [
            {"RANK": str(rank), "LOCAL_RANK": str(rank % per_node), "GROUP_RANK": str(rank // per_node)}
            for rank in range(2)
        ]
        words += ("device=ddp", f"device.devices={per_node}", f"device.num_nodes={nodes}", "device.accelerator=cpu")
        return [self.start("train.py", *words, cwd=cwd, environment=shared | rank) for rank in ranks]

    def ask(self, **request: Any) -> Any:
        """The server's answer."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        """End the server, and what it still runs."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=60)
