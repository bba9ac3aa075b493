"""A sweep: many runs of one command with different settings. What was planned, and which runs are done.

The folder of a sweep holds `sweep.json`, the planned jobs, and a folder for each job. A job is done when its
metrics.json exists, because a run writes that last: a killed sweep is resumed from what is found there.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lenet.errors import UserError
from lenet.files import read_json, write_json
from lenet.folders import RESULT

PLAN = "sweep.json"


@dataclass(frozen=True)
class Job:
    """One run: its number from 0, its overrides such as `optimizer.lr=0.5`, and its folder (by default the number)."""

    number: int
    overrides: Sequence[str]
    folder: str = ""


class Sweep:
    """The jobs planned in a folder."""

    def __init__(self, folder: Path, jobs: Sequence[Job]) -> None:
        self.folder, self.jobs = folder, list(jobs)

    def write(self) -> None:
        write_json(self.folder / PLAN, {"jobs": [asdict(job) for job in self.jobs]})

    def distinct(self, job: Job) -> tuple[str, ...]:
        """The job's overrides that not all jobs have in common."""
        common = set.intersection(*(set(each.overrides) for each in self.jobs))
        return tuple(word for word in job.overrides if word not in common)

    def folder_of(self, job: Job) -> Path:
        return self.folder / (job.folder or str(job.number))

    def is_done(self, job: Job) -> bool:
        return (self.folder_of(job) / RESULT).is_file()

    def left(self) -> list[Job]:
        """The jobs that are not done."""
        return [job for job in self.jobs if not self.is_done(job)]


def read(folder: Path, key: str) -> Sweep:
    """The sweep in a folder; `key`, such as `sweep.resume=`, starts the UserError if there is none or it is damaged."""
    try:
        return Sweep(folder, [Job(**job) for job in read_json(folder / PLAN)["jobs"]])
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{PLAN} cannot be read ({error})" if (folder / PLAN).exists() else "holds no sweep"
        raise UserError(f"{key}{folder}: {what}; name a folder such as outputs/multirun/DATE/TIME") from None


def read_result(folder: Path, remedy: str = "delete the file, and sweep.resume runs the job again") -> dict[str, Any]:
    """The metrics.json of a run that is done; if it is damaged, a UserError names the remedy."""
    path = folder / RESULT
    try:
        result = dict(read_json(path))
        return result | {"seconds": float(result["seconds"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error!r}); {remedy}") from None
