from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lenet.errors import UserError
from lenet.report import write_report
from lenet.sweep import Job, Sweep
from tests.conftest import PROJECT, Finished, TrainCommand

SMALL = ("data=synthetic", "data.train_size=300", "data.val_size=100", "data.test_size=50", "trainer.max_epochs=1")


def test_the_page_of_a_run_needs_no_network(finished_run: Finished) -> None:
    html = write_report(finished_run.folder).read_text()
    text = html[: html.index("<script")] + html[html.index("<body") :]  # Plotly itself names addresses it does not use
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    for section in ("Curves", "Numbers", "Confusion", "Mistakes", "Filters", "Configuration"):
        assert f'<h2 id="{section}">' in text
    assert text.count("data:image/png;base64,") == 7
    assert f"<td>test/acc</td><td>{finished_run.metrics['test/acc']:.6g}</td>" in text


def test_a_run_without_pictures(train_here: TrainCommand) -> None:
    run = train_here(*SMALL, "dashboard=minimal")
    html = write_report(run.folder).read_text()
    assert "dashboard=minimal" in html
    assert "data:image/png" not in html[html.index("<body") :]


def test_a_run_that_was_killed(finished_run: Finished, tmp_path: Path) -> None:
    (events,) = finished_run.folder.glob("events.out.tfevents.*")
    shutil.copy(events, tmp_path)
    assert "has not finished" in write_report(tmp_path).read_text()


def test_a_sweep_that_has_jobs_left(finished_run: Finished, tmp_path: Path) -> None:
    whole = Sweep(tmp_path, [Job(0, ("seed=0",), {}), Job(1, ("seed=1",), {})])
    whole.write()
    shutil.copytree(finished_run.folder, whole.folder_of(whole.jobs[0]))
    html = write_report(tmp_path).read_text()
    assert "1 of 2 runs are done" in html
    assert "<td>(all)</td><td>1 of 2</td>" in html


def test_a_sweep_without_results(tmp_path: Path) -> None:
    Sweep(tmp_path, [Job(0, ("seed=0",), {})]).write()
    with pytest.raises(UserError, match="none of its 1 jobs is done"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_damaged_result_is_named(finished_run: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished_run.folder, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"metrics\.json: cannot be read"):
        write_report(tmp_path / "run")


def report(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT / "scripts" / "report.py"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command(finished_run: Finished) -> None:
    done = report(finished_run.folder)
    assert (done.returncode, done.stdout) == (0, f"{finished_run.folder / 'report.html'}\n"), done.stderr


@pytest.mark.parametrize(("name", "message"), [("", "holds neither a run nor a sweep"), ("none", "is no folder")])
def test_the_command_refuses_in_one_line(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps({}))
    done = report(tmp_path / name)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {tmp_path / name}: {message}")
