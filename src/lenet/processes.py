"""The processes that train together, and the cores that one of them may use.

torchrun or SLURM's srun starts all processes of a run; otherwise Lightning starts all but the first.
"""

import math
import os
from contextlib import suppress
from pathlib import Path


def launched() -> int | None:
    """How many processes torchrun or srun has started for this run; None if neither has."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    # A script under sbatch has SLURM_NTASKS, too, but is one process until it calls srun, which alone sets this.
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    # As Lightning, which takes a shell of SLURM's for no job.
    in_shell = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return tasks if tasks > 1 and "SLURM_PROCID" in os.environ and not in_shell else None


def is_first() -> bool:
    """Whether this is the only process of a run, or the first of several that train together."""
    rank = "RANK" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM_PROCID"
    return os.environ.get(rank if launched() is not None else "LOCAL_RANK", "0") == "0"


def is_started_by_lightning() -> bool:
    return launched() is None and not is_first()


def cores(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """The processor cores that this process may use: by its affinity, and by its container's quota."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # not on Linux, or without a quota, which reads "max"
        own = Path("/proc/self/cgroup").read_text().rpartition(":")[2].strip()
        quota, period = (groups / own.lstrip("/") / "cpu.max").read_text().split()
        usable = min(usable, math.ceil(int(quota) / int(period)))
    return usable
