"""A sweep: many runs of one command, which differ in their settings. What it is to do, and what of it is done.

Its folder holds `sweep.json`, the jobs as they were planned, and a folder for each job. A job is done when its
metrics.json is there, which is written last and at once: so a sweep that was killed can be resumed from what is found.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lenet import folders
from lenet.errors import UserError
from lenet.files import read_json, write_json

PLAN = "sweep.json"
RESULT = "metrics.json"


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        number: from 0 on; the name of its folder.
        overrides: what the command line says of it, such as `optimizer.lr=0.5`.
        settings: all that follows from that, as plain dicts.
    """

    number: int
    overrides: tuple[str, ...]
    settings: dict[str, Any]


class Sweep:
    """The jobs planned in a folder.

    Attributes:
        folder: of the sweep.
        jobs: in their order.
    """

    def __init__(self, folder: Path, jobs: Sequence[Job]) -> None:
        self.folder = folder
        self.jobs = list(jobs)

    def distinct(self, job: Job) -> tuple[str, ...]:
        """The job's overrides that not all jobs have in common."""
        common = set.intersection(*(set(each.overrides) for each in self.jobs))
        return tuple(word for word in job.overrides if word not in common)

    def write(self) -> None:
        """Keep the plan in the folder."""
        jobs = [{"overrides": job.overrides, "settings": job.settings} for job in self.jobs]
        write_json(self.folder / PLAN, {"jobs": jobs})

    def folder_of(self, job: Job) -> Path:
        """Where the job's run is."""
        return self.folder / str(job.number)

    def is_done(self, job: Job) -> bool:
        """Whether the job's run has ended as it should."""
        return (self.folder_of(job) / RESULT).is_file()

    def result(self, job: Job) -> dict[str, Any]:
        """What a job that is done has in its metrics.json.

        Raises:
            UserError: that is damaged.
        """
        return read_result(self.folder_of(job), "delete the file, and sweep.resume runs the job again")

    def left(self) -> list[Job]:
        """The jobs that are not done."""
        return [job for job in self.jobs if not self.is_done(job)]

    def discard(self, job: Job) -> None:
        """Remove what a run that did not end has left."""
        shutil.rmtree(self.folder_of(job), ignore_errors=True)


def read_result(folder: Path, remedy: str) -> dict[str, Any]:
    """The metrics.json of a run that is done.

    Raises:
        UserError: it is damaged; says the remedy.
    """
    path = folder / RESULT
    try:
        result = read_json(path)
        numbers = [value for key, value in result.items() if "/" in key or key in ("seconds", "epochs", "seed")]
        if not all(value is None or isinstance(value, int | float) for value in numbers):
            raise ValueError("it holds something else than numbers")
        if missing := {"seconds", "epochs", "seed", "device"} - set(result):
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {remedy}") from None
    return dict(result)


def read(folder: Path, key: str) -> Sweep:
    """The sweep in a folder that the user named, with `key` (as in `sweep.resume`).

    Raises:
        UserError: there is none, or the folder holds what no sweep makes.
    """
    path = folder / PLAN
    try:
        plan = read_json(path)
        folders.refuse_foreign(folder)
        jobs = [Job(number, tuple(job["overrides"]), job["settings"]) for number, job in enumerate(plan["jobs"])]
        if not all(isinstance(job.settings, dict) and all(isinstance(w, str) for w in job.overrides) for job in jobs):
            raise TypeError("it is not what a sweep writes")
    except FileNotFoundError:
        where = "holds no sweep" if folder.is_dir() else "is no folder"
        raise UserError(f"{key}{folder}: {where}; name the folder of one, such as outputs/multirun/DATE/TIME") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{key}{folder}: {PLAN} cannot be read ({error})") from None
    return Sweep(folder, jobs)


def refuse_another(planned: Sequence[Job], sweep: Sweep) -> None:
    """Refuse to go on with a sweep whose jobs are not those planned.

    Raises:
        UserError: names the first difference.
    """
    remedy = "give the command that the sweep was started with, or start a new one without sweep.resume"
    if len(planned) != len(sweep.jobs):
        raise UserError(
            f"sweep.resume={sweep.folder}: has {len(sweep.jobs)} jobs, and this command has {len(planned)}; {remedy}"
        )
    for ours, theirs in zip(planned, sweep.jobs, strict=True):
        here, there = flat(ours.settings), flat(theirs.settings)
        for key in sorted(here.keys() | there.keys()):
            if here.get(key) != there.get(key):
                raise UserError(
                    f"sweep.resume={sweep.folder}: its job {ours.number} has {key}={there.get(key)}, and this command"
                    f" {key}={here.get(key)}; {remedy}"
                )


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one dict, with dots in its keys."""
    values: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        values.update(flat(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return values
