"""A saved run: checkpoints and run.json, whole, damaged, and when they are written."""

import errno
from pathlib import Path

import pytest
import torch

from lenet import files
from lenet.errors import UserError
from lenet.training import checkpoint
from lenet.training.checkpoint import WholeFileIO, find, read, read_run, warn_of_other_versions, write_run
from tests.conftest import TrainCommand

SMALL = ("data=synthetic", "data.train_size=600", "data.val_size=100", "data.test_size=50", "dashboard=minimal")


def save(path: Path, epoch: int = 0) -> Path:
    WholeFileIO().save_checkpoint({"state_dict": {"weight": torch.arange(6.0)}, "epoch": epoch}, path)
    return path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A run's folder with the checkpoints of three epochs, of which the first was the best."""
    folder = tmp_path / "checkpoints"
    for name, epoch in (("best", 0), ("last", 1), ("last", 2)):
        save(folder / f"{name}.ckpt", epoch)
    return tmp_path


def damage(path: Path) -> None:
    number = torch.tensor(4.0).numpy().tobytes()
    path.write_bytes(path.read_bytes().replace(number, torch.tensor(5.0).numpy().tobytes()))


def test_each_altered_byte_is_noticed_or_changes_nothing_and_each_cut_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path / "some.ckpt")
    whole, expected = path.read_bytes(), read(path)
    noticed = 0
    for place in range(0, len(whole), 7):
        altered = bytearray(whole)
        altered[place] ^= 1 << place % 8
        path.write_bytes(altered)
        try:  # an archive also has bytes that mean nothing
            content = read(path)
            assert torch.equal(content["state_dict"]["weight"], expected["state_dict"]["weight"])
            assert content["epoch"] == expected["epoch"]
        except UserError:
            noticed += 1
        path.write_bytes(whole[:place])
        with pytest.raises(UserError, match=r"some.ckpt: is damaged"):
            read(path)
    assert noticed > 20


@pytest.mark.parametrize(("damaged", "expected"), [(["last"], "previous"), (["last", "previous"], "best")])
def test_where_the_last_is_damaged_the_one_before_is_resumed_and_a_line_says_so(
    saved: Path, damaged: list[str], expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name in damaged:
        damage(saved / "checkpoints" / f"{name}.ckpt")
    found = find(saved)
    assert found is not None
    assert found.stem == expected
    (line,) = caplog.messages
    assert "last.ckpt" in line
    assert expected in line


def test_a_damaged_best_checkpoint_is_refused(saved: Path) -> None:
    damage(saved / "checkpoints" / "best.ckpt")
    with pytest.raises(UserError, match=r"best.ckpt: is damaged.*delete the file"):
        find(saved)


def test_a_full_disk_leaves_what_was_there(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)  # type: ignore[attr-defined]
    path = saved / "checkpoints" / "last.ckpt"
    with pytest.raises(OSError, match="No space") as error:
        save(path, epoch=3)
    assert error.value.filename == str(path)
    assert read(path)["epoch"] == 2
    assert sorted(each.name for each in path.parent.iterdir()) == ["best.ckpt", "last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize(("seconds", "kept"), [(0, True), (3600, False)])
def test_a_run_is_saved_in_between_if_the_last_save_was_long_ago(
    train_here: TrainCommand, seconds: int, kept: bool
) -> None:
    run = train_here(*SMALL, "trainer.max_epochs=3", f"checkpoint.every_seconds={seconds}")
    previous = run.folder / "checkpoints" / "previous.ckpt"
    assert previous.exists() == kept
    assert not kept or read(previous)["epoch"] == 1


# run.json


@pytest.mark.parametrize("kind", ["cut", "altered", "a list", "bytes"])
def test_a_damaged_file_is_named(tmp_path: Path, kind: str) -> None:
    write_run(tmp_path, {"seed": 3})
    path = tmp_path / checkpoint.RUN_FILE
    text = path.read_text()
    altered = text.replace("3", "4", 1)
    content = {"cut": text[:50].encode(), "altered": altered.encode(), "a list": b"[]", "bytes": b"\xff\xfe"}[kind]
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"run.json: .*start a new run"):
        read_run(tmp_path)


def test_a_resume_on_another_kind_of_processor_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_run(tmp_path, {})
    warn_of_other_versions(tmp_path)
    assert caplog.messages == []
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX1024")
    warn_of_other_versions(tmp_path)
    (line,) = caplog.messages
    assert "AVX1024" in line
