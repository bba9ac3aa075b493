"""Runs and a sweep side by side, which share a data folder that is empty when they start."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

from lenet.data import fashion_mnist
from tests.commands import PROJECT, Commands
from tests.mirror import serve
from tests.stress.sameness import differences

# What torchvision has for MD5 are the archives of its mirrors; these have the same content, compressed here.
SCRIPT = """
import pathlib, runpy, sys
from lenet.data import fashion_mnist
from torchvision.datasets import FashionMNIST
fashion_mnist.SYSTEM_FOLDER = pathlib.Path({none!r})
FashionMNIST.resources = {resources!r}
sys.argv[0] = {train!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_four_runs_and_a_sweep_obtain_the_data_once(commands: Commands, real_root: Path, tmp_path: Path) -> None:
    raw = fashion_mnist.raw_folder(real_root)
    archives = {f"{file.name}.gz": gzip.compress((raw / file.name).read_bytes(), 1) for file in fashion_mnist.FILES}
    md5 = {name: hashlib.md5(content, usedforsecurity=False).hexdigest() for name, content in archives.items()}
    script = tmp_path / "train.py"
    script.write_text(
        SCRIPT.format(none=str(tmp_path / "none"), resources=list(md5.items()), train=str(PROJECT / "train.py"))
    )
    with serve(archives) as mirror:
        small = ("data.val_size=500", "trainer.max_steps=3", "dashboard=minimal")
        shared = (f"data.root={tmp_path / 'data'}", f"data.mirrors=[{mirror.url}]", *small)
        runs = [
            commands.start(str(script), *shared, "seed=7", f"hydra.run.dir={tmp_path / str(number)}")
            for number in range(4)
        ]
        sweep = commands.start(str(script), "-m", *shared, "seed=7,8", f"hydra.sweep.dir={tmp_path / 'sweep'}")
        for each in (*runs, sweep):
            assert each.wait(timeout=120) == 0, each.communicate()[1]
    assert sorted(mirror.downloads) == sorted(archives)
    names = {path.name for path in fashion_mnist.raw_folder(tmp_path / "data").iterdir()}
    assert names == {file.name for file in fashion_mnist.FILES} | {".lock"}
    for folder in (tmp_path / "1", tmp_path / "2", tmp_path / "3", tmp_path / "sweep" / "0"):
        assert differences(tmp_path / "0", folder) == []
    assert differences(tmp_path / "0", tmp_path / "sweep" / "1") != []
