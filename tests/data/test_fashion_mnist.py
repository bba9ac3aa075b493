"""The files: small stand-ins for the four, from every source; and the real ones."""

from __future__ import annotations

import gzip
import hashlib
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torchvision.datasets import FashionMNIST

from lenet.data import fashion_mnist
from lenet.data.fashion_mnist import DataFile, obtain, raw_folder
from lenet.errors import UserError
from tests.mirror import Mirror, serve

CONTENTS = {file.name: f"{file.name}: stand-in".encode() * 10 for file in fashion_mnist.FILES}
ARCHIVES = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in CONTENTS.items()}
IMAGES = "train-images-idx3-ubyte"


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Make the four files small, and the system's copy absent. Returns a data root that does not exist yet."""
    files = [DataFile(name, len(content), hashlib.sha256(content).hexdigest()) for name, content in CONTENTS.items()]
    monkeypatch.setattr(fashion_mnist, "FILES", tuple(files))
    monkeypatch.setattr(fashion_mnist, "SYSTEM_FOLDER", tmp_path / "system")
    md5 = {name: hashlib.md5(content, usedforsecurity=False).hexdigest() for name, content in ARCHIVES.items()}
    monkeypatch.setattr(FashionMNIST, "resources", list(md5.items()))
    monkeypatch.setattr(FashionMNIST, "mirrors", [])
    return tmp_path / "data"


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with serve(ARCHIVES) as mirror:
        yield mirror


def put(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def obtained(root: Path) -> dict[str, bytes]:
    """The files in the raw folder, by name; the lock left aside."""
    return {path.name: path.read_bytes() for path in raw_folder(root).iterdir() if path.name != ".lock"}


def test_from_the_data_root_itself_without_writing(stand_ins: Path) -> None:
    put(raw_folder(stand_ins), CONTENTS)
    obtain(stand_ins)
    assert not (raw_folder(stand_ins) / ".lock").exists()


def test_from_archives_in_the_data_root(stand_ins: Path) -> None:
    put(raw_folder(stand_ins), ARCHIVES)
    obtain(stand_ins)
    assert obtained(stand_ins) == CONTENTS | ARCHIVES


def test_from_the_system_copy_before_any_mirror(stand_ins: Path, mirror: Mirror) -> None:
    put(fashion_mnist.SYSTEM_FOLDER, ARCHIVES)
    obtain(stand_ins, [mirror.url])
    assert obtained(stand_ins) == CONTENTS
    assert mirror.downloads == []


def test_the_system_copy_need_not_have_the_official_gzip_header(stand_ins: Path) -> None:
    put(fashion_mnist.SYSTEM_FOLDER, {f"{name}.gz": gzip.compress(c, 1, mtime=7) for name, c in CONTENTS.items()})
    obtain(stand_ins)
    assert obtained(stand_ins) == CONTENTS


def test_from_torchvisions_mirrors(stand_ins: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:1/", mirror.url])
    obtain(stand_ins)
    assert obtained(stand_ins) == CONTENTS
    assert sorted(mirror.downloads) == sorted(ARCHIVES)


def test_only_missing_files_are_fetched(stand_ins: Path, mirror: Mirror) -> None:
    obtain(stand_ins, [mirror.url])
    (raw_folder(stand_ins) / IMAGES).unlink()
    mirror.downloads.clear()
    obtain(stand_ins, [mirror.url])
    assert mirror.downloads == [f"{IMAGES}.gz"]


def damages(content: bytes) -> dict[str, bytes]:
    return {
        "truncated": content[:-7],
        "one byte altered": content[:50] + bytes([content[50] ^ 1]) + content[51:],
        "too long": content + b"\0",
        "empty": b"",
    }


def test_a_file_that_changes_is_verified_again(stand_ins: Path, mirror: Mirror) -> None:
    put(raw_folder(stand_ins), CONTENTS)
    obtain(stand_ins, [mirror.url])
    path = raw_folder(stand_ins) / IMAGES
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    with pytest.raises(UserError, match=f"{IMAGES}: has .*; delete the file"):
        obtain(stand_ins, [mirror.url])


@pytest.mark.parametrize("damage", damages(b"\0" * 99))
def test_a_damaged_file_is_named_and_left_alone(stand_ins: Path, damage: str, mirror: Mirror) -> None:
    damaged = damages(CONTENTS[IMAGES])[damage]
    put(raw_folder(stand_ins), CONTENTS | {IMAGES: damaged})
    with pytest.raises(UserError, match=rf"{IMAGES}: has .* where Fashion-MNIST has .*; delete the file"):
        obtain(stand_ins, [mirror.url])
    assert obtained(stand_ins)[IMAGES] == damaged


@pytest.mark.parametrize("damage", damages(b"\0" * 99))
def test_a_broken_download_leaves_nothing_that_looks_whole(stand_ins: Path, damage: str, mirror: Mirror) -> None:
    mirror.archives[f"{IMAGES}.gz"] = damages(ARCHIVES[f"{IMAGES}.gz"])[damage]
    if damage == "too long":  # the announced length hides the surplus byte from the reader
        mirror.archives[f"{IMAGES}.gz"] = ARCHIVES[f"{IMAGES}.gz"][::-1]
    with pytest.raises(UserError, match=r"127\.0\.0\.1.*corrupted"):
        obtain(stand_ins, [mirror.url])
    assert IMAGES not in obtained(stand_ins)
    assert not list(raw_folder(stand_ins).glob(".partial-*"))


def test_a_broken_mirror_is_followed_by_the_next(stand_ins: Path, mirror: Mirror) -> None:
    put(fashion_mnist.SYSTEM_FOLDER, {name: archive[:-9] for name, archive in ARCHIVES.items()})
    obtain(stand_ins, ["http://127.0.0.1:1", mirror.url + "no/such/folder", mirror.url])
    assert obtained(stand_ins) == CONTENTS


def test_an_archive_larger_than_its_file_is_not_unpacked_further(stand_ins: Path) -> None:
    bomb = gzip.compress(b"\0" * 100_000_000)
    put(fashion_mnist.SYSTEM_FOLDER, {f"{IMAGES}.gz": bomb})
    with pytest.raises(UserError, match=r"has more than \d+ bytes where"):
        obtain(stand_ins, [])


def test_without_any_source_the_error_says_what_was_tried_and_how_to_go_on(stand_ins: Path) -> None:
    with pytest.raises(UserError) as caught:
        obtain(stand_ins, ["http://127.0.0.1:1/"])
    line = str(caught.value)
    assert "\n" not in line
    for part in (str(fashion_mnist.SYSTEM_FOLDER), "http://127.0.0.1:1/", "dataset-fashion-mnist", "data=synthetic"):
        assert part in line


def test_leftovers_of_a_killed_process_are_removed(stand_ins: Path, mirror: Mirror) -> None:
    put(raw_folder(stand_ins) / ".partial-x", {IMAGES: b"half"})
    obtain(stand_ins, [mirror.url])
    assert obtained(stand_ins) == CONTENTS


def test_processes_that_start_at_once_download_once(stand_ins: Path, mirror: Mirror) -> None:
    context = multiprocessing.get_context("fork")  # so that the children have the stand-ins
    children = [context.Process(target=obtain, args=(stand_ins, [mirror.url])) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(timeout=60)
    assert [child.exitcode for child in children] == [0] * 4
    assert obtained(stand_ins) == CONTENTS
    assert sorted(mirror.downloads) == sorted(ARCHIVES)


@pytest.mark.parametrize(
    ("root", "reason"),
    [("missing/place", "is not a folder"), ("file", "is a file"), ("/proc/data", "cannot be created")],
)
def test_a_root_that_cannot_be_used_is_named(stand_ins: Path, root: str, reason: str) -> None:
    (stand_ins.parent / "file").touch()
    with pytest.raises(UserError, match=rf"data\.root=.*{root}: .*{reason}"):
        obtain(stand_ins.parent / root)


def test_a_root_that_cannot_be_written_is_named(stand_ins: Path) -> None:
    stand_ins.mkdir()
    (stand_ins / "FashionMNIST").touch()  # in the way, for a superuser too
    with pytest.raises(UserError, match=r"raw: cannot be used .*data\.root"):
        obtain(stand_ins)


def test_a_root_that_may_not_be_entered_is_named(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)  # whoever runs the tests, a superuser too
    with pytest.raises(UserError, match=r"raw: cannot be used \(Permission denied\); set data\.root"):
        obtain(stand_ins)


def test_the_real_images(real_root: Path) -> None:
    train, test = fashion_mnist.load(real_root)
    assert train.images.shape == (60_000, 28, 28)
    assert test.images.shape == (10_000, 28, 28)
    assert train.labels.bincount().tolist() == [6_000] * 10
    assert test.labels.bincount().tolist() == [1_000] * 10
    # Widely published mean and standard deviation of the training pixels.
    pixels = train.images.double() / 255
    assert (round(pixels.mean().item(), 4), round(pixels.std().item(), 4)) == (0.2860, 0.3530)


def test_files_that_nobody_verified_are_not_preferred(real_root: Path, tmp_path: Path) -> None:
    (tmp_path / "FashionMNIST").mkdir()
    raw_folder(tmp_path).symlink_to(raw_folder(real_root).resolve())
    processed = tmp_path / "FashionMNIST" / "processed"
    processed.mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(3, 28, 28, dtype=torch.uint8), torch.zeros(3, dtype=torch.long)), processed / name)
    train, _ = fashion_mnist.load(tmp_path)
    assert len(train.labels) == 60_000
