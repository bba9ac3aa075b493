from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lenet.errors import UserError
from lenet.sweeps.leaderboard import cells, leaderboard, read_runs, show
from tests.sweeps.runs import add_run


def result(acc: float | None, **others: Any) -> dict[str, Any]:
    return {"val/acc": acc, "test/acc": 0.5, "train/loss": 1.0, "seconds": 2.0} | others


def test_best_first_with_mean_deviation_and_number(tmp_path: Path) -> None:
    for number, acc in enumerate([0.5, 0.7, 0.9, 0.8]):
        add_run(tmp_path / str(number), f"lr={1 + number // 2} seed={number % 2} data=x", result(acc))
    runs = read_runs(tmp_path)
    assert runs["run"].tolist() == ["lr=1 seed=0", "lr=1 seed=1", "lr=2 seed=0", "lr=2 seed=1"]
    assert cells(leaderboard(runs)) == [
        ["setting", "n", "val/acc", "test/acc", "train/loss", "seconds"],
        ["lr=2", "2", "0.850 ± 0.071", "0.500 ± 0.000", "1.000 ± 0.000", "2.0 ± 0.0"],
        ["lr=1", "2", "0.600 ± 0.141", "0.500 ± 0.000", "1.000 ± 0.000", "2.0 ± 0.0"],
    ]


def test_runs_that_are_not_done_are_left_out(tmp_path: Path) -> None:
    add_run(tmp_path / "0", "lr=1 seed=0", None)
    add_run(tmp_path / "1", "lr=2 seed=0", result(0.25))
    assert cells(leaderboard(read_runs(tmp_path)))[1:] == [["lr=2", "1", "0.250", "0.500", "1.000", "2.0"]]


def test_without_validation_images_the_training_loss_decides(tmp_path: Path) -> None:
    add_run(tmp_path / "0", "lr=1", result(None, **{"train/loss": 0.9, "test/acc": 0.9}))
    add_run(tmp_path / "1", "lr=2", result(None, **{"train/loss": 0.8, "test/acc": 0.1}))
    rows = cells(leaderboard(read_runs(tmp_path)))[1:]
    assert [row[:3] for row in rows] == [["lr=2", "1", "–"], ["lr=1", "1", "–"]]


def test_the_text_and_the_files(tmp_path: Path) -> None:
    add_run(tmp_path / "0", "model=a lr=1", result(0.25))
    add_run(tmp_path / "10", "model=b lr=1", result(0.5))
    head, best, other, files = show(tmp_path, read_runs(tmp_path)).splitlines()
    assert [line.split()[0] for line in (head, best, other)] == ["setting", "model=b", "model=a"]
    assert str(tmp_path / "leaderboard.csv") in files
    table = pd.read_csv(tmp_path / "leaderboard.csv", header=[0, 1], index_col=0)
    assert table["val/acc", "mean"].to_dict() == {"model=b": 0.5, "model=a": 0.25}
    assert (tmp_path / "leaderboard.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_compare(tmp_path: Path) -> None:
    add_run(tmp_path / "0", "lr=1", None)
    with pytest.raises(UserError, match="none of its 1 runs is done; there is nothing to compare"):
        read_runs(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", "{}"])
def test_a_damaged_result_is_named(tmp_path: Path, content: str) -> None:
    add_run(tmp_path / "0", "lr=1", result(0.5))
    (tmp_path / "0" / "metrics.json").write_text(content)
    with pytest.raises(UserError, match=r"0/metrics\.json: cannot be read .* resume the run"):
        read_runs(tmp_path)
