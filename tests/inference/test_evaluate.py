"""Evaluations of runs: the numbers of the run itself, side by side, and as an ensemble."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from lenet.errors import UserError
from lenet.inference import load
from lenet.inference.evaluate import Evaluation, comparison, data_of, ensemble, evaluate
from tests.commands import Commands
from tests.conftest import Finished


@pytest.fixture
def folder(finished_run: Finished, tmp_path: Path) -> Path:
    """A copy, because other tests read the run's own folder."""
    return Path(shutil.copytree(finished_run.folder, tmp_path / "run"))


@pytest.mark.parametrize("split", ["test", "val"])
def test_the_numbers_are_those_of_the_run(finished_run: Finished, split: str) -> None:
    found = evaluate("run", load(finished_run.folder), data_of(finished_run.folder), split).measures
    assert found["acc"] == finished_run.metrics[f"{split}/acc"]
    assert found["loss"] == pytest.approx(finished_run.metrics[f"{split}/loss"], rel=1e-6)
    assert sum(map(sum, found["confusion"])) == found["images"]


def evaluation(probabilities: list[list[float]], labels: list[int]) -> Evaluation:
    return Evaluation("one", ["a", "b"], "Two, test", 1.0, torch.tensor(probabilities), torch.tensor(labels))


def test_accuracy_by_class_confusion_and_calibration() -> None:
    found = evaluation([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.1]], [0, 0, 1, 1]).measures
    assert found["acc"] == 0.75
    assert found["acc_by_class"] == {"a": 1.0, "b": 0.5}
    assert found["confusion"] == [[2, 0], [1, 1]]
    assert found["calibration_error"] == pytest.approx(0.9 - 0.75)


def test_an_ensemble_is_the_mean_of_the_probabilities() -> None:
    both = ensemble([evaluation([[0.8, 0.2]], [1]), evaluation([[0.1, 0.9]], [1])])
    assert both.measures["acc"] == 1.0
    assert both.loss == pytest.approx(-torch.tensor(0.55).log().item())
    with pytest.raises(UserError, match="--ensemble"):
        ensemble([evaluation([[0.8, 0.2]], [1]), evaluation([[0.8, 0.2]], [0])])


def test_the_command_compares_runs_and_writes_into_their_folders(commands: Commands, folder: Path) -> None:
    done = commands.run("scripts/evaluate.py", str(folder), str(folder), "--ensemble", cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    rows = {line[:18].strip(): line.split()[-3:] for line in done.stdout.splitlines()}
    accuracy = json.loads((folder / "evaluation.json").read_text())["acc"]
    assert rows["accuracy"] == [f"{accuracy:.4f}"] * 3
    assert (folder / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert (folder.parent / "evaluation.json").exists()


def test_the_command_names_what_is_wrong(commands: Commands, folder: Path, tmp_path: Path) -> None:
    for words, message in (
        ([str(tmp_path)], "has no checkpoint"),
        ([str(folder), "--data", "synthetc"], "did you mean synthetic?"),
    ):
        done = commands.run("scripts/evaluate.py", *words)
        assert done.returncode == 1
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


def test_the_columns_of_a_comparison_have_the_runs_whole_names() -> None:
    one = evaluation([[0.8, 0.2]], [1])
    one.name = "outputs/one of many"
    head, *_ = comparison([one, ensemble([one, one])]).splitlines()
    assert "outputs/one of many" in head
    assert head.endswith("ensemble")
