import gc
import os
import subprocess
import sys
import weakref

import pytest

from lenet.fast.memory import garbage_collector_frozen

# Allocates and frees what a training step does, twenty times over, and prints how many page faults that took.
STEPS = """
import resource, torch
from lenet.fast.memory import keep_freed_memory
keep_freed_memory()
for step in range(23):
    blocks = [torch.ones(1_250_000) for _ in range(8)]
    del blocks
    if step == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told")
def test_later_steps_reuse_memory() -> None:
    # glibc's own starting point; without keep_freed_memory it takes thousands of faults.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
    command = [sys.executable, "-c", STEPS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) < 100


class Circle:
    """Refers to itself, so that only the garbage collector can free it."""

    def __init__(self) -> None:
        self.own = self


def test_objects_are_set_aside_and_come_back() -> None:
    garbage, kept = weakref.ref(Circle()), Circle()
    with garbage_collector_frozen():
        assert garbage() is None  # what an earlier run left
        assert not any(each is kept for each in gc.get_objects())
        new = weakref.ref(Circle())
        gc.collect()
        assert new() is None
    assert any(each is kept for each in gc.get_objects())
    assert gc.get_freeze_count() == 0
