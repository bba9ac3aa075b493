"""Signals that ask a run to end: it finishes its step and saves, instead of ending wherever it is."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


def signals() -> list[signal.Signals]:
    """Those that ask a run to end. Under SLURM a job may also have chosen a signal that comes before its end.

    A terminal that is closed sends SIGHUP, which nohup has a program ignore.
    """
    names = ["SIGINT", "SIGTERM", "SIGHUP"] + ["SIGUSR1", "SIGUSR2"] * ("SLURM_JOB_ID" in os.environ)
    known: list[signal.Signals] = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [each for each in known if each.name != "SIGHUP" or signal.getsignal(each) != signal.SIG_IGN]


class Interrupted(KeyboardInterrupt):
    """The program was asked to end, and says what is left.

    Attributes:
        signum: the signal; Ctrl-C is SIGINT.
    """

    def __init__(self, signum: int, *words: str) -> None:
        super().__init__(*words)
        self.signum = signum


def signum_of(interrupt: KeyboardInterrupt) -> int:
    """The signal that an interrupt came from; Python's own come from Ctrl-C."""
    signum: int = getattr(interrupt, "signum", signal.SIGINT)
    return signum


def saying(interrupt: KeyboardInterrupt, words: str) -> Interrupted:
    """The same interrupt, which says what is left."""
    return Interrupted(signum_of(interrupt), words)


class Leave(BaseException):
    """Ends Lightning's loops when all is saved. (Of a KeyboardInterrupt Lightning would make an exit status of 1.)

    Attributes:
        signum: the signal that asked for it.
        step: after which it was saved.
    """

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(signum, step)
        self.signum, self.step = signum, step


class Interrupts:
    """Notes the first signal, from `listen` on; a Ctrl-C after it ends the program at once.

    Attributes:
        received: the signal; None before.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def listen(self) -> None:
        """Take the signals, which whoever had them before gets back from `raise_at_once` alone."""
        handle(self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = self.received or signum
        # The system ends the program at the next Ctrl-C, in the middle of a long computation too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_at_once() -> None:
    """Let the signals raise Interrupted wherever the program is: before there is something to save, and after."""
    handle(_raise)
    if not isinstance(sys.unraisablehook, _OnceMore):
        sys.unraisablehook = _OnceMore(sys.unraisablehook)


def _raise(signum: int, frame: FrameType | None) -> None:
    raise Interrupted(signum)


class _OnceMore:
    """Where Python clears an object away it ignores exceptions; a signal that came meanwhile comes once more.

    Args:
        before: gets what else is ignored.
    """

    def __init__(self, before: Callable[[Any], Any]) -> None:
        self._before = before

    def __call__(self, unraisable: Any) -> None:
        interrupt, main = unraisable.exc_value, threading.main_thread().ident
        if isinstance(interrupt, Interrupted) and main is not None:
            again = threading.Timer(0.01, signal.pthread_kill, (main, interrupt.signum))
            again.daemon = True
            again.start()
        else:
            self._before(unraisable)


def handle(handler: Callable[[int, FrameType | None], Any]) -> None:
    """Let it take the signals, from now on."""
    if threading.current_thread() is threading.main_thread():  # Python allows no other
        for each in signals():
            signal.signal(each, handler)
