from pathlib import Path

import pytest

from lenet.benchmarks import contenders
from lenet.benchmarks.contenders import CONTENDERS, OURS
from lenet.benchmarks.train import order_of_round, report
from lenet.config import compose_settings


def test_the_report_has_medians_and_the_ratios_of_each_round() -> None:
    speeds = {name: [10.0, 20.0, 6.0] for name in CONTENDERS} | {OURS: [20.0, 30.0, 24.0]}
    lines = report({64: speeds, 256: speeds}).splitlines()
    assert "3 rounds" in lines[0]
    assert [line.split()[2] for line in lines if line.startswith("batches of")] == ["64", "256"]
    assert lines[2].split() == ["this", "project", "24", "(20–30)"]
    assert lines[3].split() == ["plain", "10", "(6–20)", "2.000", "(1.500–4.000)"]


def test_each_round_starts_with_another_contender() -> None:
    assert ["".join(order_of_round("abc", number)) for number in range(4)] == ["abc", "bca", "cab", "abc"]


@pytest.mark.long
@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_trains(name: str, real_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "TRAINED_IMAGES", 600)
    small = ("trainer.max_epochs=1", "data.batch_size=300", "data.val_size=59400")
    settings = compose_settings(f"data.root={real_root}", "device=cpu", *small)
    assert CONTENDERS[name](settings, tmp_path) > 0
