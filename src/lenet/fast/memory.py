"""Keeps Python and the C library from disturbing a training run by how they manage memory.

By default glibc may return what a training step frees to the operating system, and the next step then pays for new
memory, page by page: of four runs, two had up to 1,800 page faults a step, and were up to a quarter slower. Python's
garbage collector looks at 400,000 objects once torch and Lightning are loaded, for a tenth to a third of a second.
Both functions change the whole process, so the command line calls them; nothing in the library needs them.
"""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3), from glibc's malloc.h


def keep_freed_memory() -> None:
    """Make this process reuse freed memory instead of returning it; without glibc, nothing happens."""
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # blocks below this come from the heap
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)  # the heap's free end stays until it exceeds this


@contextmanager
def garbage_collector_frozen() -> Iterator[None]:
    """Hides the objects that exist now from the garbage collector, for a time."""
    gc.collect()  # so that garbage of an earlier run is not kept
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
