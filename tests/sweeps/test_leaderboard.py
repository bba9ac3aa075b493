from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from lenet.errors import UserError
from lenet.sweeps import sweep
from lenet.sweeps.leaderboard import Leaderboard
from lenet.sweeps.sweep import Job, Sweep


def planned(folder: Path, *overrides: str) -> Sweep:
    return Sweep(folder, [Job(number, words.split()) for number, words in enumerate(overrides)])


def finish(whole: Sweep, number: int, acc: float | None, **others: Any) -> None:
    folder = whole.folder_of(whole.jobs[number])
    folder.mkdir()
    result = {"val/acc": acc, "test/acc": 0.5, "train/loss": 1.0, "seconds": 2.0} | others
    (folder / "metrics.json").write_text(json.dumps(result))


def test_best_first_with_mean_deviation_and_number(tmp_path: Path) -> None:
    whole = planned(tmp_path, "lr=1 seed=0 data=x", "lr=1 seed=1 data=x", "lr=2 seed=0 data=x", "lr=2 seed=1 data=x")
    for number, acc in enumerate([0.5, 0.7, 0.9, 0.8]):
        finish(whole, number, acc)
    assert str(Leaderboard(whole)).splitlines() == [
        "setting  n        val/acc       test/acc     train/loss    seconds",
        "lr=2     2  0.850 ± 0.071  0.500 ± 0.000  1.000 ± 0.000  2.0 ± 0.0",
        "lr=1     2  0.600 ± 0.141  0.500 ± 0.000  1.000 ± 0.000  2.0 ± 0.0",
    ]


def test_jobs_that_are_not_done_are_counted_and_come_last(tmp_path: Path) -> None:
    whole = planned(tmp_path, "lr=1 seed=0", "lr=2 seed=0", "lr=2 seed=1")
    finish(whole, 2, 0.25)
    lines = str(Leaderboard(whole)).splitlines()
    assert lines[1].split() == ["lr=2", "1", "of", "2", "0.250", "0.500", "1.000", "2.0"]
    assert lines[2].split() == ["lr=1", "0", "of", "1", "–", "–", "–", "–"]


def test_without_validation_images_the_training_loss_decides(tmp_path: Path) -> None:
    whole = planned(tmp_path, "lr=1", "lr=2")
    finish(whole, 0, None, **{"train/loss": 0.9, "test/acc": 0.9})
    finish(whole, 1, None, **{"train/loss": 0.8, "test/acc": 0.1})
    assert [line.split()[0] for line in str(Leaderboard(whole)).splitlines()[1:]] == ["lr=2", "lr=1"]


def test_the_files(tmp_path: Path) -> None:
    whole = planned(tmp_path, "model=a lr=1", "model=b lr=1")
    finish(whole, 0, 0.25)
    finish(whole, 1, 0.5)
    assert str(tmp_path / "leaderboard.csv") in Leaderboard(whole).save()
    with (tmp_path / "leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["val/acc mean"], row["n"]) for row in rows] == [("b", "0.5", "1"), ("a", "0.25", "1")]
    assert "lr" not in rows[0]
    assert (tmp_path / "leaderboard.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of its 2 jobs is done; there is nothing to compare"):
        Leaderboard(planned(tmp_path, "lr=1", "lr=2"))


@pytest.mark.parametrize("content", ["{", "[1]", "{}"])
def test_a_damaged_result_is_named(tmp_path: Path, content: str) -> None:
    whole = planned(tmp_path, "lr=1")
    finish(whole, 0, 0.5)
    (tmp_path / "0" / "metrics.json").write_text(content)
    with pytest.raises(UserError, match=r"0/metrics\.json: cannot be read .* sweep\.resume runs the job again"):
        Leaderboard(whole)


def test_a_folder_without_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no sweep"):
        sweep.read(tmp_path, "")
