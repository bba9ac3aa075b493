import subprocess
import sys

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
    command = [sys.executable, "-c", STEPS.format(keep=keep)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told")
def test_later_steps_take_memory_that_is_there() -> None:
    kept = page_faults(keep=True)
    assert kept < 100
    assert kept < page_faults(keep=False)
