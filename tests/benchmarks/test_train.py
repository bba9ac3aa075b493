from pathlib import Path

import pytest

from lenet.benchmarks import contenders
from lenet.benchmarks.contenders import CONTENDERS
from lenet.config import compose_settings


@pytest.mark.long
@pytest.mark.parametrize("name", CONTENDERS["cpu"])
def test_every_contender_trains(name: str, real_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "TRAINED_IMAGES", 600)
    small = ("trainer.max_epochs=1", "data.batch_size=300", "data.val_size=59400")
    settings = compose_settings(f"data.root={real_root}", "device=cpu", *small)
    assert CONTENDERS["cpu"][name](settings, tmp_path) > 0
