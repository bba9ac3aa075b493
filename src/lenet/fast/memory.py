"""What Python and the C library do with memory, made not to disturb training.

A training step on the CPU allocates its activations and frees them again. By default glibc may hand blocks of that
size back to the operating system, and the next step then pays for new ones, page by page. Whether it does depends on
what else the process has allocated before: of four like runs here two went through up to 1,800 page faults a step, and
ran up to a quarter slower than the other two. Told to keep what was freed, all ran at the same speed.

Python looks for objects that nothing refers to any more by going through all that exist. Once torch and Lightning are
loaded those are 400,000, and it takes a tenth of a second to a third, somewhere in the first epochs.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

# Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> bool:
    """Let freed blocks be used again by this process, from now on, instead of returning them to the system.

    Returns:
        Whether that could be arranged: with glibc, on Linux. Elsewhere nothing is changed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # Blocks below the first threshold come from the heap; the heap's free end stays until it exceeds the second.
    from_heap = any(mallopt(_M_MMAP_THRESHOLD, size) for size in (1 << 30, 32 << 20))
    return from_heap and bool(mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))


@contextmanager
def objects_set_aside() -> Iterator[None]:
    """Spare Python's garbage collector the objects that exist now, until this ends; enables it, and leaves it so."""
    gc.collect()  # what an earlier run in this process has left is not to be kept
    gc.freeze()
    gc.enable()
    try:
        yield
    finally:
        gc.unfreeze()
