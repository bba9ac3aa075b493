from __future__ import annotations

import hashlib
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from lenet.errors import UserError
from lenet.training.checkpoint_file import DamagedError, encode, read, refuse_not_finite

CONTENT = {"state_dict": {"weight": torch.arange(6.0).view(2, 3)}, "steps": 7}


def written(folder: Path, content: bytes) -> Path:
    path = folder / "some.ckpt"
    path.write_bytes(content)
    return path


def with_checksum(archive: bytes) -> bytes:
    """As somebody would make it who knows how: the archive's comment is the right checksum."""
    body = archive[:-2] + (71).to_bytes(2, "little")
    return body + b"sha256:" + hashlib.sha256(body).hexdigest().encode()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    found = read(written(tmp_path, encode(CONTENT)))
    assert found["steps"] == 7
    assert torch.equal(found["state_dict"]["weight"], CONTENT["state_dict"]["weight"])  # type: ignore[index]


def test_torch_reads_it_as_any_other(tmp_path: Path) -> None:
    found = torch.load(written(tmp_path, encode(CONTENT)), weights_only=True)
    assert found["steps"] == 7
    assert zipfile.ZipFile(tmp_path / "some.ckpt").testzip() is None


def test_each_altered_byte_and_each_cut_is_noticed(tmp_path: Path) -> None:
    whole = encode(CONTENT)
    for place in range(0, len(whole), 7):
        altered = bytearray(whole)
        altered[place] ^= 1 << place % 8
        with pytest.raises(DamagedError, match="is damaged"):
            read(written(tmp_path, bytes(altered)))
        with pytest.raises(DamagedError, match="is damaged"):
            read(written(tmp_path, whole[:place]))


class Bomb:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("known", [True, False], ids=["checksum", "no checksum"])
def test_nothing_in_it_is_executed(tmp_path: Path, known: bool) -> None:
    buffer = io.BytesIO()
    torch.save({"state_dict": Bomb(f"touch {tmp_path / 'executed'}")}, buffer)
    content = with_checksum(buffer.getvalue()) if known else buffer.getvalue()
    with pytest.raises(UserError, match=r"some\.ckpt: is ") as refused:
        read(written(tmp_path, content))
    assert len(str(refused.value).splitlines()) == 1
    plain = pickle.dumps(Bomb(f"touch {tmp_path / 'executed'}"))
    with pytest.raises(UserError):
        read(written(tmp_path, plain))
    assert not (tmp_path / "executed").exists()


def test_an_archive_that_unpacks_to_more_than_it_is_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50 << 20))
    assert len(buffer.getvalue()) < 1 << 20
    with pytest.raises(UserError, match="parts of it are compressed"):
        read(written(tmp_path, with_checksum(buffer.getvalue())))


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = written(tmp_path, b"")
    os.truncate(path, 1 << 40)  # takes no room
    with pytest.raises(UserError, match=r"has 1,099,511,627,776 bytes"):
        read(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "none.ckpt")


def test_something_else_than_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds a list"):
        read(written(tmp_path, encode([1, 2])))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    refuse_not_finite(tmp_path, {"a": torch.ones(2), "b": [1.0, {"c": 3}], "d": "nan"})
    with pytest.raises(UserError, match=r"b\.1\.c holds numbers that are not finite"):
        refuse_not_finite(tmp_path, {"a": torch.ones(2), "b": [1.0, {"c": torch.tensor([1.0, value])}]})
