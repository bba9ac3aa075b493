"""Started by test_fuzz: runs the command line many times, each in a fork of this process, which has loaded everything.

Reads lines of JSON: the words, the folder to be in, and the files that get the output. Answers with the exit status, or
with null if the run did not end when it was asked to.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path

import lenet.training  # noqa: F401 - what a run loads; loading starts no thread

PROJECT = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 15


def run(words: list[str], folder: str, stdout: str, stderr: str) -> None:
    os.chdir(folder)
    for path, descriptor in ((stdout, 1), (stderr, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv = [str(PROJECT / "train.py"), *words]
    status: object = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 99
    sys.stdout.flush()
    os._exit(status if isinstance(status, int) else 0 if status is None else 98)


def status_of(child: int) -> int | None:
    """Its exit status; one that goes on is asked to end, and None means that it did not."""
    for signum in (None, signal.SIGTERM):
        if signum is not None:
            os.kill(child, signum)
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


for line in sys.stdin:
    arguments = json.loads(line)
    child = os.fork()
    if child == 0:
        run(*arguments)
    print(json.dumps(status_of(child)), flush=True)
