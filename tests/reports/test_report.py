import shutil
from pathlib import Path

import pytest

from lenet.errors import UserError
from lenet.monitor.tensorboard import read_events
from lenet.reports.report import held_out_accuracy, write_report
from tests.commands import Commands
from tests.conftest import Finished, TrainCommand
from tests.sweeps.runs import add_run

SMALL = ("data=synthetic", "data.train_size=300", "data.val_size=100", "data.test_size=50", "trainer.max_epochs=1")


@pytest.fixture
def folder(finished_run: Finished, tmp_path: Path) -> Path:
    """A copy, because other tests read the run's own folder."""
    return Path(shutil.copytree(finished_run.folder, tmp_path / "run"))


def body_of(report: Path) -> str:
    """Without Plotly's source."""
    html = report.read_text()
    return html[html.rindex("</head>") :]


def test_the_report_of_a_run_needs_no_network(folder: Path, finished_run: Finished) -> None:
    body = body_of(write_report(folder))
    for part in ("http://", "https://", 'src="//', "<link"):
        assert part not in body
    for section in ("Results", "Curves", "Pictures", "Configuration"):
        assert f'<h2 id="{section}">' in body
    assert body.count("data:image/png;base64,") >= 6
    assert f"<td>test/acc</td><td>{finished_run.metrics['test/acc']:.6g}</td>" in body
    assert "_target_: torch.optim.Adam" in body


def test_a_run_without_dashboards_has_curves_and_no_pictures(train_here: TrainCommand) -> None:
    body = body_of(write_report(train_here(*SMALL, "dashboard=minimal").folder))
    assert "dashboard=full" in body
    assert "plotly" in body
    assert "data:image/png" not in body


def test_a_run_without_tensorboard_has_results_and_settings(train_here: TrainCommand) -> None:
    run = train_here(*SMALL, "logger=csv", "model=lenet", "model.channels=[2,3]")
    body = body_of(write_report(run.folder))
    assert "logger=tensorboard" in body
    assert "<td>test/acc</td>" in body
    assert "- 3" in body


def test_a_run_that_was_killed_has_what_it_wrote(folder: Path) -> None:
    (folder / "metrics.json").unlink()
    body = body_of(write_report(folder))
    assert "has not finished" in body
    assert '"name":"train"' in body


def test_a_sweep_with_a_job_left(finished_run: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished_run.folder, tmp_path / "0")
    add_run(tmp_path / "0", "seed=0 x=</script><b>", finished_run.metrics)
    add_run(tmp_path / "1", "seed=1", None)
    html = write_report(tmp_path).read_text()
    assert "1 of 2 runs are done" in html
    assert "<td>x=&lt;/script&gt;&lt;b&gt;</td><td>1</td>" in html
    assert "</script><b>" not in html


def test_without_validation_images_the_training_loss_chooses_the_best_run(
    train_here: TrainCommand, tmp_path: Path
) -> None:
    losses = []
    for seed in range(2):
        run = train_here(*SMALL, f"seed={seed}", "data.val_size=0", "trainer.max_epochs=3")
        shutil.copytree(run.folder, tmp_path / "runs" / str(seed))
        add_run(tmp_path / "runs" / str(seed), f"seed={seed}", run.metrics)
        losses.append(run.metrics["train/loss"])
        ((epoch, acc),) = held_out_accuracy(read_events(run.folder))
        assert epoch == 3
        assert acc == pytest.approx(run.metrics["test/acc"], rel=1e-6)
    body = body_of(write_report(tmp_path / "runs"))
    assert f"The run with the best train/loss: seed={losses.index(min(losses))}" in body


@pytest.mark.parametrize(("file", "content"), [("metrics.json", "{"), ("metrics.json", "[]"), ("run.json", "{}")])
def test_a_damaged_file_is_named(folder: Path, file: str, content: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(UserError, match=file):
        write_report(folder)


def test_the_command_prints_the_path(commands: Commands, folder: Path) -> None:
    done = commands.run("scripts/report.py", str(folder))
    assert (done.returncode, done.stdout) == (0, f"{folder / 'report.html'}\n"), done.stderr


@pytest.mark.parametrize("name", ["", "none"])
def test_the_command_refuses_other_folders_in_one_line(commands: Commands, tmp_path: Path, name: str) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    done = commands.run("scripts/report.py", str(tmp_path / name))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {tmp_path / name}: ")
