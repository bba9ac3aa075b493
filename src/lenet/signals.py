"""Signals that ask the program to end, as an exception."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any


class Interrupted(BaseException):
    """A signal asked the program to end: `signum`, which is SIGINT for Ctrl-C.

    Not a KeyboardInterrupt, of which Lightning makes an exit status of its own.
    """

    def __init__(self, signum: int, *words: str) -> None:
        super().__init__(*words)
        self.signum = signum


@contextmanager
def handling(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Let a function take the signals meanwhile; then put the handlers before back."""
    if threading.current_thread() is not threading.main_thread():  # Python allows signals nowhere else
        yield
        return
    before = {each: signal.getsignal(each) for each in _signals()}
    for each in before:
        signal.signal(each, handler)
    try:
        yield
    finally:
        for each, its_handler in before.items():
            signal.signal(each, its_handler)


def raising() -> AbstractContextManager[None]:
    """Let the signals raise Interrupted meanwhile."""
    return handling(_raise)


def _raise(signum: int, frame: FrameType | None) -> None:
    raise Interrupted(signum)


def _signals() -> list[signal.Signals]:
    """Those that ask a run to end. Under SLURM a job may also have chosen a signal that comes before its end.

    A terminal that is closed sends SIGHUP, which nohup has a program ignore.
    """
    names = ["SIGINT", "SIGTERM", "SIGHUP"] + ["SIGUSR1", "SIGUSR2"] * ("SLURM_JOB_ID" in os.environ)
    known: list[signal.Signals] = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [each for each in known if each.name != "SIGHUP" or signal.getsignal(each) != signal.SIG_IGN]
