"""A function called in a process of its own, which shares what this one has loaded, and nothing that it does later.

A new Python needs seconds to load torch and Lightning; a fork of one that has them needs milliseconds, and starts from
the same random numbers, warnings, settings and memory each time. It is safe as long as this process has started no
threads and touched no GPU: loading torch does neither.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class ProcessDiedError(Exception):
    """The process ended without an answer: it was killed, or ran out of memory."""


def can_fork() -> bool:
    """Whether this system has it; Windows has not."""
    return "fork" in multiprocessing.get_all_start_methods()


Ask = Callable[[Any], Any]
"""Asks the process that forked something, and returns its reply; both must be picklable."""


def call_in_fork(function: Callable[[Ask], Any], reply: Ask | None = None) -> Any:
    """What the function returns, when a fork of this process calls it; it must be picklable.

    The fork ends when this process does, however that comes about. Where there is no fork, this process calls it.

    Args:
        function: gets a function with which it can ask this process.
        reply: answers what is asked.

    Raises:
        ProcessDiedError: the fork ended without a result.
        KeyboardInterrupt: the user pressed Ctrl-C; the fork has had it too, and has ended.
    """
    return begin_in_fork(function, reply)()


def begin_in_fork(function: Callable[[Ask], Any], reply: Ask | None = None) -> Callable[[], Any]:
    """The same, but returns at once a function that waits for the result; it must be called."""
    if not can_fork():
        result = function(reply or _nobody)
        return lambda: result
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    alive_end, alive = context.Pipe(duplex=False)
    gc.freeze()  # what there is now, the fork need not look through, nor copy
    process = context.Process(target=_in_fork, args=(function, theirs, alive_end, [ours, alive]))
    process.start()
    theirs.close()
    alive_end.close()

    def wait() -> Any:
        try:
            while True:
                is_result, content = ours.recv()
                if is_result:
                    return content
                ours.send((reply or _nobody)(content))
        except EOFError:
            process.join()
            raise ProcessDiedError(_how_it_ended(process.exitcode)) from None
        except BaseException:
            # It has had the Ctrl-C too; but if a program has interrupted this process alone, it needs to be told.
            process.join(timeout=1)
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGTERM)  # as often as it may get it: it ends once
            process.join(timeout=10)
            process.kill()
            raise
        finally:
            process.join()
            ours.close()
            alive.close()

    return wait


def end_with(parent: int) -> None:
    """From now on, let this process end when the one that has started it is gone, whatever it does meanwhile.

    Args:
        parent: the number of that one, which may be gone already.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _in_fork(
    function: Callable[[Ask], Any], theirs: Connection, alive_end: Connection, of_parent: list[Connection]
) -> None:
    for end in of_parent:  # so that the parent alone holds them
        end.close()
    threading.Thread(target=_end_with_parent, args=(alive_end,), daemon=True).start()

    def ask(content: Any) -> Any:
        theirs.send((False, content))
        return theirs.recv()

    try:
        result = function(ask)
    except KeyboardInterrupt:
        sys.exit(130)  # the parent has had it too, or sent it, and says so
    theirs.send((True, result))


def _nobody(content: Any) -> Any:
    raise RuntimeError("nobody replies to this process")


def _end_with_parent(alive_end: Connection) -> None:
    # Nothing is ever sent: the other end is closed when the parent has ended, even if that was killed.
    with contextlib.suppress(EOFError, OSError):
        alive_end.recv()
    os._exit(1)


def _how_it_ended(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"was ended by {signal.Signals(-exitcode).name}"
    return f"ended with status {exitcode}"
