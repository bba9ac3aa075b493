from __future__ import annotations

import io
from pathlib import Path

import pytest
from torch import Tensor
from torch.utils.data import Subset
from torchvision.datasets import FashionMNIST
from torchvision.transforms import ToTensor

from lenet.benchmarks import contenders
from lenet.benchmarks.contenders import CONTENDERS, PEAK, Task, operations_per_image
from lenet.benchmarks.train import Figures, plot, report
from tests.commands import PROJECT


def figures(*sizes: int) -> Figures:
    values = {name: [10.0, 20.0, 6.0] for name in CONTENDERS}
    return {size: values | {"this project": [20.0, 30.0, 24.0], PEAK: [40.0, 40.0, 40.0]} for size in sizes}


def test_medians_and_the_ratio_round_by_round() -> None:
    lines = report(figures(256)).splitlines()
    assert "3 rounds" in lines[0]
    assert lines[2].startswith("batches of 256")
    assert lines[3].split() == ["this", "project", "24", "(20–30)"]
    assert lines[5].split() == ["plain", "10", "(6–20)", "2.00", "(1.50–4.00)"]
    assert lines[-2].endswith("implies 40 (40–40) examples/s;")
    assert lines[-1] == "  this project reaches 60.0% (50.0%–75.0%) of it"


def test_an_image_takes_2_264_million_operations() -> None:
    assert operations_per_image() == 2 * 1_131_960


def test_each_batch_size_has_its_rows() -> None:
    lines = report(figures(64, 256)).splitlines()
    assert [line.split()[2] for line in lines if line.startswith("batches of")] == ["64", "256"]


@pytest.mark.parametrize("sizes", [(256,), (64, 256, 1024)], ids=str)
def test_the_plot_can_be_drawn(sizes: tuple[int, ...]) -> None:
    file = io.BytesIO()
    plot(figures(*sizes)).savefig(file)
    assert file.getvalue().startswith(b"\x89PNG")


@pytest.mark.long
@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_runs(name: str, real_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def few(task: Task) -> Subset[tuple[Tensor, int]]:
        return Subset(FashionMNIST(str(real_root), train=True, transform=ToTensor()), range(600))

    monkeypatch.setattr(Task, "pictures", few)
    monkeypatch.setattr(contenders, "TRAINED_IMAGES", 4000)
    assert CONTENDERS[name](Task(PROJECT, epochs=1, batch_size=8192), tmp_path) > 0
