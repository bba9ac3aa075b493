"""Compiling when it is needed, and keeping what was compiled."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lenet.fast import kernels
from lenet.fast.kernels import compiler
from lenet.fast.kernels.compiler import UnavailableError

pytestmark = pytest.mark.compiled


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(compiler, "CACHE", tmp_path / "cache")
    # How well does not matter here, and takes seconds.
    monkeypatch.setattr(compiler, "OPTIONS", tuple("-O0" if each == "-O3" else each for each in compiler.OPTIONS))
    kernels._outcome.cache_clear()
    yield tmp_path / "cache"
    kernels._outcome.cache_clear()


def test_it_is_compiled_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.load().lanes in (4, 8, 16)
    (library,) = cache.iterdir()
    kernels._outcome.cache_clear()
    monkeypatch.setattr(subprocess, "run", None)
    assert kernels.load().lanes in (4, 8, 16)
    assert list(cache.iterdir()) == [library]


def test_a_change_of_the_source_is_compiled(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels.load()
    changed = tmp_path / "changed"
    shutil.copytree(compiler.SOURCES, changed)
    with (changed / "lanes.h").open("a") as header:
        header.write("\n/* changed */\n")
    monkeypatch.setattr(compiler, "SOURCES", changed)
    kernels._outcome.cache_clear()
    kernels.load()
    assert len(list(cache.iterdir())) == 2


def test_a_damaged_library_is_compiled_anew(cache: Path) -> None:
    kernels.load()
    (library,) = cache.iterdir()
    size = library.stat().st_size
    library.unlink()  # what is loaded must not change
    library.write_bytes(b"\x7fELF, but not for long")
    kernels._outcome.cache_clear()
    assert kernels.load().lanes in (4, 8, 16)
    assert library.stat().st_size == size


def test_where_nothing_may_be_kept_it_is_compiled_each_time(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    assert kernels.load().lanes in (4, 8, 16)


def test_without_a_compiler_it_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UnavailableError, match="there is no gcc on this machine"):
        kernels.load()


def test_a_compiler_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kernels.c").write_text("int lane_count(void) { return 8 }\n")
    monkeypatch.setattr(compiler, "SOURCES", tmp_path)
    for _ in range(2):
        with pytest.raises(UnavailableError, match=r"gcc fails: .*kernels\.c.*error: expected"):
            kernels.load()
        monkeypatch.setattr(subprocess, "run", None)  # it is not asked again


def test_another_library_in_its_place_is_replaced(cache: Path, tmp_path: Path) -> None:
    kernels.load()
    (library,) = cache.iterdir()
    library.unlink()
    (tmp_path / "other.c").write_text("int lane_count(void) { return 8; }\n")
    subprocess.run(["gcc", "-shared", "-o", str(library), str(tmp_path / "other.c")], check=True)  # noqa: S607
    kernels._outcome.cache_clear()
    assert callable(kernels.load().training_step)


def test_nowhere_to_compile(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(compiler.tempfile, "TemporaryDirectory", full)  # type: ignore[attr-defined]
    with pytest.raises(UnavailableError, match="gcc fails: No space left on device"):
        kernels.load()
