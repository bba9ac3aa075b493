from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lenet.sweeps.isolation import ProcessDiedError, call_in_fork, can_fork

pytestmark = pytest.mark.skipif(not can_fork(), reason="this system has no fork")


def test_an_answer_comes_back() -> None:
    assert call_in_fork(lambda _: {"pid": os.getpid()})["pid"] != os.getpid()


def test_nothing_else_does() -> None:
    torch.manual_seed(3)
    first, second = (call_in_fork(lambda _: torch.rand(1).item()) for _ in range(2))
    assert first == second == torch.rand(1).item()

    def change(_: object) -> None:
        os.environ["LENET_TEST_OF_ISOLATION"] = "changed"

    call_in_fork(change)
    assert "LENET_TEST_OF_ISOLATION" not in os.environ


def test_it_can_ask() -> None:
    asked: list[int] = []

    def reply(number: int) -> int:
        asked.append(number)
        return number + 1

    assert call_in_fork(lambda ask: [ask(1), ask(5)], reply) == [2, 6]
    assert asked == [1, 5]


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda _: os.kill(os.getpid(), signal.SIGKILL), "was ended by SIGKILL"),
        (lambda _: os._exit(7), "ended with status 7"),
    ],
    ids=["killed", "exited"],
)
def test_an_end_without_an_answer_is_told(end: object, message: str) -> None:
    with pytest.raises(ProcessDiedError, match=message):
        call_in_fork(end)  # type: ignore[arg-type]


def test_who_interrupts_the_parent_alone_interrupts_both() -> None:
    program = """
import time
from lenet.sweeps.isolation import call_in_fork

def wait(ask):
    print("ready", flush=True)
    time.sleep(60)

try:
    call_in_fork(wait)
except KeyboardInterrupt:
    print("interrupted")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=8)  # and not the ten seconds after which a fork is killed
    assert (out, errors) == ("interrupted\n", "")


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    sign = tmp_path / "pid"
    code = (
        "import os, pathlib, time; from lenet.sweeps.isolation import call_in_fork\n"
        f"call_in_fork(lambda _: (pathlib.Path({str(sign)!r}).write_text(str(os.getpid())), time.sleep(60)))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 30
    while not (sign.exists() and sign.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    child = int(sign.read_text())
    while _lives(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
