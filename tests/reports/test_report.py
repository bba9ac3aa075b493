from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lenet.errors import UserError
from lenet.reports.report import _read, write_report
from lenet.sweeps.sweep import Job, Sweep
from tests.commands import Commands
from tests.conftest import Finished, TrainCommand

SMALL = ("data=synthetic", "data.train_size=300", "data.val_size=100", "data.test_size=50", "trainer.max_epochs=1")


@pytest.fixture
def folder(finished_run: Finished, tmp_path: Path) -> Path:
    """A copy of a run's, as other tests look at what the run itself has left."""
    return Path(shutil.copytree(finished_run.folder, tmp_path / "run"))


def test_the_page_of_a_run_needs_no_network(folder: Path, finished_run: Finished) -> None:
    html = write_report(folder).read_text()
    text = html[: html.index("<script")] + html[html.rindex("</head>") :]  # Plotly names addresses it does not use
    for part in ("http://", "https://", 'src="//', "<link"):
        assert part not in text
    for section in ("Curves", "Numbers", "Confusion", "Mistakes", "Filters", "Configuration"):
        assert f'<h2 id="{section}">' in text
    assert text.count("data:image/png;base64,") == 7
    assert f"<td>test/acc</td><td>{finished_run.metrics['test/acc']:.6g}</td>" in text


def test_a_run_without_pictures(train_here: TrainCommand) -> None:
    run = train_here(*SMALL, "dashboard=minimal")
    html = write_report(run.folder).read_text()
    assert "dashboard=minimal" in html
    assert "data:image/png" not in html[html.rindex("</head>") :]


def test_a_run_that_was_killed(finished_run: Finished, tmp_path: Path) -> None:
    (events,) = finished_run.folder.glob("events.out.tfevents.*")
    shutil.copy(events, tmp_path)
    assert "has not finished" in write_report(tmp_path).read_text()


def test_a_sweep_that_has_jobs_left(finished_run: Finished, tmp_path: Path) -> None:
    whole = Sweep(tmp_path, [Job(0, ("seed=0", "x=</script><b>"), {}), Job(1, ("seed=1",), {})])
    whole.write()
    shutil.copytree(finished_run.folder, whole.folder_of(whole.jobs[0]))
    html = write_report(tmp_path).read_text()
    assert "1 of 2 runs are done" in html
    assert "<td>x=&lt;/script&gt;&lt;b&gt;</td><td>1</td>" in html
    assert "</script><b>" not in html


def test_without_validation_images_the_loss_decides_and_the_one_test_is_at_the_end(
    train_here: TrainCommand, tmp_path: Path
) -> None:
    whole = Sweep(tmp_path, [Job(number, (f"seed={number}",), {}) for number in range(2)])
    whole.write()
    for job in whole.jobs:
        run = train_here(*SMALL, *job.overrides, "data.val_size=0", "trainer.max_epochs=3")
        shutil.copytree(run.folder, whole.folder_of(job))
    html = write_report(tmp_path).read_text()
    best = min((0, 1), key=lambda number: whole.result(whole.jobs[number])["train/loss"])
    assert "by the mean of train/loss" in html
    assert f"The run with the best train/loss of all, seed={best}:" in html
    ((epoch, acc),) = _read(whole.folder_of(whole.jobs[0])).held_out()
    assert epoch == 3
    assert acc == pytest.approx(whole.result(whole.jobs[0])["test/acc"], rel=1e-6)


def test_a_sweep_without_results(tmp_path: Path) -> None:
    Sweep(tmp_path, [Job(0, ("seed=0",), {})]).write()
    with pytest.raises(UserError, match="none of its 1 jobs is done"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"test/acc": "a", "seconds": 1}'])
def test_a_damaged_result_is_named(folder: Path, content: str) -> None:
    (folder / "metrics.json").write_text(content)
    with pytest.raises(UserError, match=r"metrics\.json: cannot be read"):
        write_report(folder)


def test_the_command(commands: Commands, folder: Path) -> None:
    done = commands.run("scripts/report.py", str(folder))
    assert (done.returncode, done.stdout) == (0, f"{folder / 'report.html'}\n"), done.stderr


@pytest.mark.parametrize(("name", "message"), [("", "holds neither a run nor a sweep"), ("none", "is no folder")])
def test_the_command_refuses_in_one_line(commands: Commands, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps({}))
    done = commands.run("scripts/report.py", str(tmp_path / name))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {tmp_path / name}: {message}")


def test_nothing_is_written_through_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").write_text("precious")
    (folder / ".report.html.part").symlink_to(tmp_path / "thesis")
    with pytest.raises(UserError, match="is a link"):
        write_report(folder)
    assert (tmp_path / "thesis").read_text() == "precious"
