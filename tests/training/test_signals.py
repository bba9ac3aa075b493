"""Signals at moments that are known; test_resume.py sends them to whole runs."""

import os
import signal
from typing import Any

import pytest

from lenet.signals import Interrupted, raising
from lenet.training.signals import EndOnSignal

NOBODY: Any = None


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_ctrl_c_after_another_signal_ends_the_process_at_once(first: signal.Signals) -> None:
    child = os.fork()
    if child == 0:
        EndOnSignal().on_train_start(NOBODY, NOBODY)
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), signal.SIGINT)
        os._exit(0)
    # By the system itself: in the middle of a computation too.
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGINT


def test_the_first_signal_counts_and_the_handlers_are_put_back() -> None:
    asked = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before, callback = [signal.getsignal(each) for each in asked], EndOnSignal()
    callback.on_train_start(NOBODY, NOBODY)
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGHUP)
    callback.teardown(NOBODY, NOBODY, "fit")
    assert callback.received == signal.SIGTERM
    assert [signal.getsignal(each) for each in asked] == before


def test_outside_of_training_a_signal_is_an_exception() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as interrupt, raising():
        signal.raise_signal(signal.SIGTERM)
    assert interrupt.value.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
