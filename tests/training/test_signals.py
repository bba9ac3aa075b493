"""Signals to a process that has taken them, at moments that are known. tests/test_ended.py sends them to whole runs."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from lenet.training.signals import signals

LISTENS = """
import os, signal
from lenet.training.signals import Interrupts
interrupts = Interrupts()
interrupts.listen()
for signum in ({signals}):
    os.kill(os.getpid(), signum)
    print(interrupts.received, flush=True)
"""


def ended(*signals: signal.Signals) -> subprocess.CompletedProcess[str]:
    code = LISTENS.format(signals="".join(f"signal.{each.name}, " for each in signals))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_a_second_interrupt_ends_the_process_at_once(first: signal.Signals) -> None:
    done = ended(first, signal.SIGINT)
    assert done.stdout == f"{first.value}\n"
    assert done.returncode == -signal.SIGINT  # by the system itself, in the middle of a computation too
    assert done.stderr == ""


def test_the_first_signal_is_noted_and_counts() -> None:
    done = ended(signal.SIGTERM, signal.SIGTERM)
    assert (done.returncode, done.stdout) == (0, f"{signal.SIGTERM.value}\n" * 2)


def test_a_closed_terminal_asks_for_an_end_unless_nohup_says_otherwise() -> None:
    before = signal.getsignal(signal.SIGHUP)
    for handler, there in ((signal.SIG_DFL, True), (signal.SIG_IGN, False)):
        signal.signal(signal.SIGHUP, handler)
        try:
            assert (signal.SIGHUP in signals()) == there
        finally:
            signal.signal(signal.SIGHUP, before)


CLEARS = """
import os, signal, time, weakref
from lenet.training.signals import Interrupted, raise_at_once

class Thing:
    pass

raise_at_once()
try:
    thing = Thing()
    there = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    del thing
    time.sleep(30)
except Interrupted as interrupt:
    print(interrupt.signum)
"""


def test_a_signal_that_comes_while_python_ignores_exceptions_comes_once_more() -> None:
    done = subprocess.run([sys.executable, "-c", CLEARS], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{signal.SIGTERM.value}\n", "")
