"""Four files from every source: small stand-ins for a data set."""

import gzip
import hashlib
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from lenet.data.idx import IdxDataModule
from lenet.errors import UserError
from tests.mirror import Mirror, serve


def as_idx(values: Tensor) -> bytes:
    """An IDX file of bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.byte().numpy().tobytes()


IMAGES = "train-images"
IMAGE_VALUES = torch.arange(6 * 28 * 28).view(6, 28, 28) % 251
CONTENTS = {
    IMAGES: as_idx(IMAGE_VALUES),
    "train-labels": as_idx(torch.arange(6)),
    "test-images": as_idx(IMAGE_VALUES[:2] + 1),
    "test-labels": as_idx(torch.tensor([3, 1])),
}
ARCHIVES = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in CONTENTS.items()}


class Small(IdxDataModule):
    folder_name = "Small"
    files: ClassVar = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()}
    system_folder: Path = Path("set by a fixture")
    hint = "install a package, or "


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Small:
    """A data set in a root that does not exist yet, without mirrors; its copy in the system is not there."""
    monkeypatch.setattr(Small, "system_folder", tmp_path / "system")
    return Small(tmp_path / "data", mirrors=[])


@pytest.fixture
def mirror(small: Small) -> Iterator[Mirror]:
    """Where the data set is downloaded from."""
    with serve(ARCHIVES) as mirror:
        small.mirrors = [mirror.url]
        yield mirror


def put(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def obtained(small: Small) -> dict[str, bytes]:
    """The files in the folder, by name; the lock left aside."""
    return {path.name: path.read_bytes() for path in small.folder.iterdir() if path.name != ".lock"}


def test_files_that_are_there_are_read_without_writing(small: Small) -> None:
    put(small.folder, CONTENTS)
    train, test = small.load()
    assert torch.equal(train.images, IMAGE_VALUES.byte())
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.equal(test.images, IMAGE_VALUES[:2].byte() + 1)
    assert test.labels.tolist() == [3, 1]
    assert obtained(small) == CONTENTS
    assert not (small.folder / ".lock").exists()


def test_from_archives_in_the_same_folder(small: Small) -> None:
    put(small.folder, ARCHIVES)
    small.prepare_data()
    assert obtained(small) == CONTENTS | ARCHIVES


def test_from_the_systems_copy_before_any_mirror(small: Small, mirror: Mirror) -> None:
    # Not byte by byte the official archives.
    put(small.system_folder, {f"{name}.gz": gzip.compress(c, 1, mtime=7) for name, c in CONTENTS.items()})
    small.prepare_data()
    assert obtained(small) == CONTENTS
    assert mirror.downloads == []


def test_only_missing_files_are_downloaded(small: Small, mirror: Mirror) -> None:
    put(small.folder, {name: content for name, content in CONTENTS.items() if name != IMAGES})
    small.prepare_data()
    assert mirror.downloads == [f"{IMAGES}.gz"]


def test_broken_sources_are_followed_by_the_next(small: Small, mirror: Mirror) -> None:
    put(small.system_folder, {name: gzip.compress(b"another data set") for name in ARCHIVES})
    small.mirrors = ["http://127.0.0.1:1", mirror.url + "no/such/folder", mirror.url]
    small.prepare_data()
    assert obtained(small) == CONTENTS


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[:-7],
    "one byte altered": lambda content: content[:50] + bytes([content[50] ^ 1]) + content[51:],
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_left_alone(small: Small, mirror: Mirror, damage: str) -> None:
    damaged = DAMAGES[damage](CONTENTS[IMAGES])
    put(small.folder, CONTENTS | {IMAGES: damaged})
    with pytest.raises(UserError, match=rf"{IMAGES}: has SHA-256 .*delete"):
        small.setup()
    assert obtained(small)[IMAGES] == damaged


def test_a_damaged_download_leaves_nothing_behind(small: Small, mirror: Mirror) -> None:
    mirror.archives[f"{IMAGES}.gz"] = DAMAGES["truncated"](ARCHIVES[f"{IMAGES}.gz"])
    with pytest.raises(UserError, match=rf"127\.0\.0\.1.*{IMAGES}\.gz \(.+\)"):
        small.prepare_data()
    assert obtained(small) == {}


def test_without_any_source_the_error_says_what_was_tried_and_how_to_go_on(small: Small) -> None:
    small.mirrors = ["http://127.0.0.1:1/"]
    with pytest.raises(UserError) as caught:
        small.prepare_data()
    line = str(caught.value)
    assert "\n" not in line
    for part in (str(small.system_folder), "http://127.0.0.1:1/", "install a package", "data=synthetic"):
        assert part in line


def test_a_server_that_does_not_answer_is_given_up(small: Small) -> None:
    small.timeout_seconds = 0.2
    with serve(ARCHIVES, silent=True) as silent:
        small.mirrors = [silent.url]
        with pytest.raises(UserError, match="timed out"):
            small.prepare_data()


def test_processes_that_start_at_once_download_once(small: Small, mirror: Mirror) -> None:
    context = multiprocessing.get_context("fork")  # so that the children have the stand-ins
    children = [context.Process(target=small.prepare_data) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(timeout=60)
    assert [child.exitcode for child in children] == [0] * 4
    assert obtained(small) == CONTENTS
    assert sorted(mirror.downloads) == sorted(ARCHIVES)


@pytest.mark.parametrize("root", ["missing/place", "file", "occupied", "/proc/data"])
def test_a_root_that_cannot_be_used_is_named(tmp_path: Path, root: str) -> None:
    (tmp_path / "file").touch()
    put(tmp_path / "occupied", {"Small": b"a file where a folder is wanted"})
    with pytest.raises(UserError, match=rf"data\.root=.*{root}: .*name a folder"):
        Small(tmp_path / root, mirrors=[]).prepare_data()
