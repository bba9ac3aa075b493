from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lenet import fashion_mnist
from tests.conftest import PROJECT


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, PROJECT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def get_data(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT / "scripts" / "get_data.py"), "--root", str(root)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_get_data_says_where_the_files_are(real_root: Path) -> None:
    done = get_data(real_root)
    assert done.returncode == 0
    assert str(fashion_mnist.raw_folder(real_root)) in done.stdout


def test_get_data_names_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    done = get_data(tmp_path / "missing" / "folder")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: data.root=")


def test_the_benchmark_reports_medians_and_the_ratio_round_by_round() -> None:
    figures = {"this project": [20.0, 30.0, 24.0], "template": [10.0, 10.0, 6.0]}
    lines = script("benchmark").report(figures).splitlines()
    assert "3 rounds" in lines[0]
    assert lines[2].split() == ["this", "project", "24", "(20–30)", "examples/s"]
    assert lines[3].split() == ["template", "10", "(6–10)", "examples/s"]
    assert lines[4] == "this project ÷ template: 3.00 (2.00–4.00)"


@pytest.mark.parametrize("arguments", [["train", "--rounds", "0"], ["training"]])
def test_the_benchmark_refuses_what_it_cannot_do(arguments: list[str]) -> None:
    command = [sys.executable, str(PROJECT / "scripts" / "benchmark.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
