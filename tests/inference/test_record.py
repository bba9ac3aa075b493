"""The network in docs/record, which `experiment=record` has trained, is what its model card says."""

import json
import re
import shutil
from pathlib import Path

import pytest

from lenet import load
from tests.commands import PROJECT, Commands

RECORD = PROJECT / "docs" / "record"


def test_the_network_has_the_accuracy_of_its_card(real_root: Path, commands: Commands, tmp_path: Path) -> None:
    shutil.copy(RECORD / "model.safetensors", tmp_path)
    done = commands.run("scripts/evaluate.py", str(tmp_path / "model.safetensors"), "--data", "fashion_mnist")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "evaluation.json").read_text())
    stated = re.search(r"^Accuracy (0\.\d+) and loss (0\.\d+)", (RECORD / "README.md").read_text(), re.MULTILINE)
    assert stated is not None
    # On another processor, rounding may decide for another class where two are close.
    assert found["acc"] == pytest.approx(float(stated[1]), abs=3e-4)
    assert found["loss"] == pytest.approx(float(stated[2]), abs=1e-4)


def test_it_has_no_more_parameters_than_a_lenet_with_normalisations() -> None:
    assert sum(each.numel() for each in load(RECORD / "model.safetensors").parameters()) == 62_158
