"""Four files from every source: small stand-ins for a data set."""

import gzip
import hashlib
import multiprocessing
import socket
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from lenet.data import KMNIST, MNIST, EMNISTBalanced, FashionMNIST
from lenet.data.idx import IdxDataModule, md5_of
from lenet.errors import UserError


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
    title, choice = "Small", "small"
    archives: ClassVar = {name: md5_of(ARCHIVES[f"{name}.gz"]) for name in CONTENTS}
    files: ClassVar = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()}
    system_folder: Path = Path("set by a fixture")
    hint = "install a package, or "


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Small:
    """A data set in a root that does not exist yet, without mirrors; its copy in the system is not there."""
    monkeypatch.setattr(Small, "system_folder", tmp_path / "system")
    return Small(tmp_path / "data", mirrors=[])


def put(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


class Mirror(SimpleHTTPRequestHandler):
    """Sends the archives, and keeps the names of those that it has sent."""

    sent: ClassVar[list[str]] = []

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        if code == 200:
            self.sent.append(self.path.lstrip("/"))


@pytest.fixture
def mirror(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder with the archives on the server where the data set is downloaded from."""
    monkeypatch.setattr(Mirror, "sent", [])
    folder = put(tmp_path / "mirror", ARCHIVES)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Mirror, directory=folder)) as server:
        Thread(target=server.serve_forever).start()
        small.mirrors = [f"http://127.0.0.1:{server.server_port}/"]
        yield folder
        server.shutdown()


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


def test_from_the_systems_copy_before_any_mirror(small: Small, mirror: Path) -> None:
    # Not byte by byte the official archives.
    put(small.system_folder, {f"{name}.gz": gzip.compress(c, 1, mtime=7) for name, c in CONTENTS.items()})
    small.prepare_data()
    assert obtained(small) == CONTENTS
    assert Mirror.sent == []


def test_only_missing_files_are_downloaded(small: Small, mirror: Path) -> None:
    put(small.folder, {name: content for name, content in CONTENTS.items() if name != IMAGES})
    small.prepare_data()
    assert Mirror.sent == [f"{IMAGES}.gz"]


def test_broken_sources_are_followed_by_the_next(small: Small, mirror: Path) -> None:
    put(small.system_folder, {name: gzip.compress(b"another data set") for name in ARCHIVES})
    small.mirrors = ["http://127.0.0.1:1", f"{small.mirrors[0]}no/such/folder", *small.mirrors]
    small.prepare_data()
    assert obtained(small) == CONTENTS


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[:-7],
    "one byte altered": lambda content: content[:50] + bytes([content[50] ^ 1]) + content[51:],
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_left_alone(small: Small, mirror: Path, damage: str) -> None:
    damaged = DAMAGES[damage](CONTENTS[IMAGES])
    put(small.folder, CONTENTS | {IMAGES: damaged})
    with pytest.raises(UserError, match=rf"{IMAGES}: is damaged, or not Small.*move it away"):
        small.setup()
    assert obtained(small)[IMAGES] == damaged


def test_a_damaged_download_leaves_nothing_behind(small: Small, mirror: Path) -> None:
    put(mirror, {f"{IMAGES}.gz": DAMAGES["truncated"](ARCHIVES[f"{IMAGES}.gz"])})
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
    with socket.create_server(("127.0.0.1", 0)) as silent:
        small.mirrors = [f"http://127.0.0.1:{silent.getsockname()[1]}"]
        with pytest.raises(UserError, match="timed out"):
            small.prepare_data()


def test_processes_that_start_at_once_download_once(small: Small, mirror: Path) -> None:
    context = multiprocessing.get_context("fork")  # so that the children have the stand-ins
    children = [context.Process(target=small.prepare_data) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(timeout=60)
    assert [child.exitcode for child in children] == [0] * 4
    assert obtained(small) == CONTENTS
    assert sorted(Mirror.sent) == sorted(ARCHIVES)


@pytest.mark.parametrize("root", ["missing/place", "file", "occupied", "/proc/data"])
def test_a_root_that_cannot_be_used_is_named(tmp_path: Path, root: str) -> None:
    (tmp_path / "file").touch()
    put(tmp_path / "occupied", {"Small": b"a file where a folder is wanted"})
    with pytest.raises(UserError, match=rf"data\.root=.*{root}: .*name a folder"):
        Small(tmp_path / root, mirrors=[]).prepare_data()


OTHERS = as_idx(IMAGE_VALUES + 2)


class Other(Small):
    title, choice = "Other", "other"
    archives: ClassVar = {IMAGES: md5_of(gzip.compress(OTHERS, mtime=0))}
    files: ClassVar = {IMAGES: hashlib.sha256(OTHERS).hexdigest()}


@pytest.mark.parametrize("place", ["raw", "root"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_files_of_another_data_set_are_named_as_such_and_not_passed_over(
    small: Small, mirror: Path, place: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IdxDataModule, "__subclasses__", lambda: [Small, Other])
    folder = small.folder if place == "raw" else small.root
    put(folder, {f"{IMAGES}{suffix}": gzip.compress(OTHERS, mtime=0) if suffix else OTHERS})
    with pytest.raises(UserError, match=rf"{IMAGES}{suffix}: is Other's; use data=other") as caught:
        small.setup()
    assert "delete" not in str(caught.value)


def test_names_that_7_zip_leaves_are_found(tmp_path: Path) -> None:
    class Idx(IdxDataModule):
        title, choice, mirrors = "Idx", "idx", ()
        archives: ClassVar = {
            "train-images-idx3-ubyte": "", "train-labels-idx1-ubyte": "",
            "t10k-images-idx3-ubyte": "", "t10k-labels-idx1-ubyte": "",
        }  # fmt: skip

    names = [name.replace("-idx", ".idx") for name in Idx.archives]
    put(tmp_path / "Idx" / "raw", dict(zip(names, CONTENTS.values(), strict=True)))
    data = Idx(tmp_path, val_size=1)
    data.setup()
    assert torch.equal(data.images("train").images, IMAGE_VALUES[:5].byte())


def test_without_a_known_checksum_a_file_needs_the_right_form(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Small, "files", {})
    put(small.folder, CONTENTS | {IMAGES: DAMAGES["truncated"](CONTENTS[IMAGES])})
    with pytest.raises(UserError, match=rf"{IMAGES}: is damaged, or not Small's.*move it away"):
        small.setup()


@pytest.mark.parametrize("kind", [MNIST, KMNIST])
def test_digits_and_characters_come_from_a_mirror(
    kind: type[IdxDataModule], mirror: Path, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives = dict(zip(kind.archives, ARCHIVES.values(), strict=True))
    put(mirror, {f"{name}.gz": archive for name, archive in archives.items()})
    data = kind(tmp_path / "data", small.mirrors, val_size=1)
    with pytest.raises(UserError, match=rf"{kind.title}.*wrong checksum.*data=synthetic"):
        data.setup()
    monkeypatch.setattr(kind, "archives", {name: md5_of(archive) for name, archive in archives.items()})
    monkeypatch.setattr(kind, "files", {})
    data.setup()
    assert torch.equal(data.images("train").images, IMAGE_VALUES[:5].byte())
    assert data.classes == 10


def test_emnist_comes_out_of_one_archive_and_its_images_are_upright(
    mirror: Path, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(mirror / "gzip.zip", "w") as archive:
        for name, content in zip(EMNISTBalanced.archives, ARCHIVES.values(), strict=True):
            archive.writestr(f"gzip/{name}.gz", content)
    data = EMNISTBalanced(tmp_path / "data", small.mirrors, val_size=1)
    with pytest.raises(UserError, match=r"EMNIST.*wrong checksum"):
        data.setup()
    monkeypatch.setattr(EMNISTBalanced, "md5", md5_of((mirror / "gzip.zip").read_bytes()))
    data.setup()
    assert torch.equal(data.images("train").images, IMAGE_VALUES[:5].byte().mT)
    assert data.classes == 47
    assert Mirror.sent.count("gzip.zip") == 2


@pytest.mark.parametrize("kind", [FashionMNIST, MNIST, KMNIST, EMNISTBalanced])
def test_without_a_network_each_data_set_names_the_remedy(kind: type[IdxDataModule], tmp_path: Path) -> None:
    data = kind(tmp_path, ["http://127.0.0.1:1"])
    data.system_folder = None
    with pytest.raises(UserError, match=rf"{kind.title}/raw.*connect to a network, or .*data=synthetic"):
        data.setup()
