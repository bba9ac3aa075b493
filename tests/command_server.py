"""Started by tests.commands: runs this project's commands in forks of itself, which have torch and Lightning loaded.

Reads a line of JSON for each request, and answers with one: to start a command, or to ask for the exit status of one.
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import signal
import sys
import threading
import traceback
from typing import Any

import hydra  # noqa: F401
import optuna  # noqa: F401 - what scripts load besides
import plotly.graph_objects  # noqa: F401
import torchvision.datasets  # noqa: F401

import lenet.training.run  # noqa: F401 - what a run loads; loading starts no thread


def become(words: list[str], folder: str, environment: dict[str, str], outputs: list[str]) -> None:
    """Make this process look like a new one that was given these words."""
    os.setsid()
    os.chdir(folder)
    for number, path in enumerate([os.devnull, *outputs]):
        os.close(number)  # what is opened next gets this number
        os.set_inheritable(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), True)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = words
    sys.path[0] = os.path.dirname(words[0])  # noqa: PTH120 - as Python itself has it


def serve() -> dict[str, Any] | None:
    """Answer until there are no more requests; in a fork, return what it is to run."""
    children: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "ended" in request:  # None while it runs, else as subprocess has it
            found, status = os.waitpid(request["ended"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if found else None
            children.discard(found)
        else:
            answer = os.fork()
            if answer == 0:
                return dict(request)
            children.add(answer)
        print(json.dumps(answer), flush=True)
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    return None


def run() -> int:
    """The script that sys.argv names, to its end; its exit status."""
    status: object = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    # As Python itself ends, but for taking all modules apart, which takes longer here than all the rest.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    if isinstance(status, str):
        print(status, file=sys.stderr)
    sys.stderr.flush()
    return status if isinstance(status, int) else int(status is not None)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C in the terminal is for pytest, which then closes stdin
    gc.freeze()  # what is loaded would otherwise be copied where a fork looks for garbage
    command = serve()
    if command is not None:
        become(**command)
        os._exit(run())
