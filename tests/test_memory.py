import os
import subprocess
import sys
from pathlib import Path

import pytest

# Allocates and frees what a training step does, twenty times over, and prints how many page faults that took.
STEPS = """
import resource, torch
from lenet.memory import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
def step():
    blocks = [torch.ones(1_250_000) for _ in range(8)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep: bool) -> int:
    # glibc's own starting point, which it may or may not leave by itself, depending on what was allocated before.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
    command = [sys.executable, "-c", STEPS.format(keep=keep)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told")
@pytest.mark.skipif(
    Path("/sys/kernel/mm/transparent_hugepage/enabled").exists()
    and "[always]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(),
    reason="with huge pages everywhere there are few faults to save",
)
def test_later_steps_take_memory_that_is_there() -> None:
    assert page_faults(keep=False) > 1000
    assert page_faults(keep=True) < 100
