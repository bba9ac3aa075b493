from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lenet import folders
from lenet.errors import UserError


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


PLANTED: dict[str, tuple[Callable[[Path], object], str]] = {
    "link to a file": (lambda path: path.symlink_to("/etc/passwd"), "is a link"),
    "link to a folder": (lambda path: path.symlink_to("/tmp"), "is a link"),  # noqa: S108 - any folder will do
    "link to nothing": (lambda path: path.symlink_to("nothing"), "is a link"),
    "pipe": (os.mkfifo, "is a pipe or a device"),
    "socket": (bind, "is a pipe or a device"),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_what_no_run_makes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    plant, what = PLANTED[planted]
    Path("run/checkpoints").mkdir(parents=True)
    Path("run/run.json").touch()
    folders.refuse_foreign(Path("run"))
    plant(Path("run/checkpoints/x"))
    with pytest.raises(UserError, match=rf"^run/checkpoints/x: {what}"):
        folders.refuse_foreign(Path("run"))


def test_a_file_with_another_name_elsewhere_is_refused(tmp_path: Path) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "last.ckpt").touch()
    (checkpoints / "previous.ckpt").hardlink_to(checkpoints / "last.ckpt")  # as a run that was killed may leave it
    folders.refuse_shared(tmp_path / "run")
    (tmp_path / "thesis").touch()
    (tmp_path / "run" / "train.log").hardlink_to(tmp_path / "thesis")
    with pytest.raises(UserError, match=r"train.log: has another name elsewhere, .*; go on with a copy"):
        folders.refuse_shared(tmp_path / "run")


def test_a_folder_at_work_is_waited_for(tmp_path: Path) -> None:
    with folders.alone(tmp_path, "resume"):
        waiting = folders.alone(tmp_path, "sweep.resume", seconds=0.1)
        with pytest.raises(UserError, match="another process is at work on it"):
            waiting.__enter__()
    with folders.alone(tmp_path, "sweep.resume", seconds=0.1):
        pass


def test_a_folder_that_cannot_be_looked_into_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The system lets root look everywhere.
    def walk(folder: Path, onerror: Callable[[OSError], None]) -> Iterator[Any]:
        onerror(PermissionError(13, "Permission denied", str(folder / "checkpoints")))
        yield from ()

    monkeypatch.setattr(folders.os, "walk", walk)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"checkpoints: cannot be looked into \(Permission denied\)"):
        folders.refuse_foreign(tmp_path)


def test_what_goes_meanwhile_is_none_of_its_business(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders.refuse_foreign(tmp_path / "not there")
    monkeypatch.setattr(folders.os, "walk", lambda *_, **__: [(str(tmp_path), [], [".last.ckpt.part"])])  # type: ignore[attr-defined]
    folders.refuse_foreign(tmp_path)


def test_what_submitit_keeps_of_jobs_is_let_be(tmp_path: Path) -> None:
    jobs = tmp_path / ".submitit"
    jobs.mkdir()
    (jobs / ".submission_file_1.sh").symlink_to("1_submission.sh")  # as it makes one for a cluster
    folders.refuse_foreign(tmp_path)
    jobs.rename(tmp_path / "elsewhere")
    jobs.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"\.submitit: is a link"):
        folders.refuse_foreign(tmp_path)
