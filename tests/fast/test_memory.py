import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from lenet.fast.memory import objects_set_aside

# Allocates and frees what a training step does, twenty times over, and prints how many page faults that took.
STEPS = """
import resource, torch
from lenet.fast.memory import keep_freed_memory
def step():
    blocks = [torch.ones(1_250_000) for _ in range(8)]
def page_faults():
    for _ in range(3):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(page_faults())
assert keep_freed_memory()
print(page_faults())
"""


def page_faults() -> tuple[int, int]:
    """Before memory that was freed is kept, and after."""
    # glibc's own starting point, which it may or may not leave by itself, depending on what was allocated before.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
    command = [sys.executable, "-c", STEPS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    before, after = map(int, done.stdout.split())
    return before, after


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told")
@pytest.mark.skipif(
    Path("/sys/kernel/mm/transparent_hugepage/enabled").exists()
    and "[always]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(),
    reason="with huge pages everywhere there are few faults to save",
)
def test_later_steps_take_memory_that_is_there() -> None:
    before, after = page_faults()
    assert before > 1000
    assert after < 100


class Circle:
    """Refers to itself, so that the garbage collector alone can tell that nobody else does."""

    def __init__(self) -> None:
        self.own = self


def test_objects_are_set_aside_and_come_back() -> None:
    garbage = weakref.ref(Circle())
    kept = Circle()
    gc.disable()  # as train.py does while it loads
    with objects_set_aside():
        assert garbage() is None  # what an earlier run left
        assert gc.isenabled()
        assert not any(each is kept for each in gc.get_objects())
        new = weakref.ref(Circle())
        gc.collect()
        assert new() is None
    assert any(each is kept for each in gc.get_objects())
    assert gc.get_freeze_count() == 0


def test_they_come_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), objects_set_aside():
        raise ZeroDivisionError
    assert gc.get_freeze_count() == 0
