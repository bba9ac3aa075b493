"""A wheel, installed elsewhere, in an empty folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import PROJECT


@pytest.mark.long
def test_a_wheel_contains_what_it_takes_to_train(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", str(PROJECT), str(source)], check=True)  # noqa: S607
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source], check=True, cwd=tmp_path
    )
    (wheel,) = tmp_path.glob("lenet-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "installed", wheel], check=True)
    (tmp_path / "empty").mkdir()
    words = ["model=lenet", "data=synthetic", "data.train_size=2000", "trainer.max_epochs=1"]
    done = subprocess.run(
        [sys.executable, tmp_path / "installed" / "bin" / "lenet-train", *words],
        cwd=tmp_path / "empty",
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "empty" / "outputs").rglob("metrics.json"))) == 1
    assert str(tmp_path / "empty") in done.stdout
