"""Compiling when it is needed, and keeping what was compiled."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lenet.fast import CompiledNetwork, UnavailableError
from lenet.fast.kernels import compiler, lanes
from lenet.models import LeNet

pytestmark = pytest.mark.compiled


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(compiler, "CACHE", tmp_path / "cache")
    # Optimisation takes seconds and does not matter here.
    monkeypatch.setattr(compiler, "OPTIONS", tuple("-O0" if each == "-O3" else each for each in compiler.OPTIONS))
    compiler.load.cache_clear()
    yield tmp_path / "cache"
    compiler.load.cache_clear()


def test_it_is_compiled_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lanes() in (4, 8, 16)
    (library,) = cache.iterdir()
    compiler.load.cache_clear()
    monkeypatch.setattr(subprocess, "run", None)
    assert lanes() in (4, 8, 16)
    assert list(cache.iterdir()) == [library]


def test_a_change_of_the_source_is_compiled(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler.load()
    monkeypatch.setattr(compiler, "SOURCES", shutil.copytree(compiler.SOURCES, tmp_path / "changed"))
    with (compiler.SOURCES / "lanes.h").open("a") as header:
        header.write("/* changed */\n")
    compiler.load.cache_clear()
    compiler.load()
    assert len(list(cache.iterdir())) == 2


def test_a_damaged_library_is_compiled_again(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler.load()
    (library,) = cache.iterdir()
    damaged = tmp_path / library.name  # elsewhere, as a library is not loaded twice from one path
    damaged.write_bytes(b"\x7fELF, but not for long")
    monkeypatch.setattr(compiler, "CACHE", tmp_path)
    compiler.load.cache_clear()
    assert lanes() in (4, 8, 16)
    assert damaged.stat().st_size == library.stat().st_size


def test_without_a_compiler_nothing_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UnavailableError, match="no gcc"):
        CompiledNetwork(LeNet())


def test_a_compiler_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kernels.c").write_text("int lane_count(void) { return 8 }\n")
    monkeypatch.setattr(compiler, "SOURCES", tmp_path)
    with pytest.raises(UnavailableError, match=r"kernels\.c.*error: expected"):
        CompiledNetwork(LeNet())
