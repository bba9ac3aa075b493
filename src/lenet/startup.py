"""Importing this first lets a signal end the program without a traceback while everything else is loaded.

Loading takes seconds, and there is nothing to save meanwhile. `lenet.cli` and training take the signals over.
"""

from __future__ import annotations

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # for the next milliseconds

import os  # noqa: E402
from types import FrameType  # noqa: E402

from lenet.training.signals import handle  # noqa: E402


def _end(signum: int, frame: FrameType | None) -> None:
    what = b"interrupted\n" if signum == signal.SIGINT else f"ended by {signal.Signals(signum).name}\n".encode()
    os.write(2, what)
    os._exit(128 + signum)


handle(_end)
