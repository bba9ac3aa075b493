"""A checkpoint's file: what torch.save writes, which is a zip archive, with its SHA-256 as the archive's comment.

So a checkpoint can be loaded with torch.load as ever, and a damaged one is told from a whole one. Nothing in the file
is executed, and nothing of it is unpacked: an archive with compressed members is refused.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lenet.errors import UserError
from lenet.files import DEEPEST, refuse_endless

_PREFIX = b"sha256:"
_COMMENT_SIZE = len(_PREFIX) + 64
_END_RECORD, _END_RECORD_SIZE = b"PK\x05\x06", 22
"""A zip archive without a comment ends with a record of this size; its last two bytes are the comment's length."""


LONGEST_NAME = 200

MOST_VALUES = 100_000
"""So many dicts, lists, tensors and plain values. A run's has some hundreds."""


class DamagedError(UserError):
    """The file is not as it was written: cut off, or altered."""


def encode(checkpoint: dict[str, Any]) -> bytes:
    """The file's content."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    content = bytearray(buffer.getbuffer())
    assert content[-_END_RECORD_SIZE:].startswith(_END_RECORD)
    content[-2:] = _COMMENT_SIZE.to_bytes(2, "little")
    return bytes(content) + _PREFIX + hashlib.sha256(content).hexdigest().encode()


def read(path: Path) -> dict[str, Any]:
    """The checkpoint in a file, if it is whole and holds tensors and plain values alone.

    Raises:
        DamagedError: the checksum is missing or wrong.
        UserError: it cannot be read, or is something else than a checkpoint; whoever wrote it made it so.
    """
    try:
        refuse_endless(path)
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    archive, comment = content[:-_COMMENT_SIZE], content[-_COMMENT_SIZE:]
    if comment != _PREFIX + hashlib.sha256(archive).hexdigest().encode():
        raise DamagedError(f"{path}: is damaged: its checksum is not that of its content")
    try:
        members = zipfile.ZipFile(io.BytesIO(content)).infolist()
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not stored or sum(member.file_size for member in members) > len(content):
            raise UserError(f"{path}: is no checkpoint: parts of it are compressed, and could be of any size")
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # whatever the loader makes of what somebody has put together
        raise UserError(f"{path}: is no checkpoint that can be loaded safely ({reason_of(error)})") from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path}: is no checkpoint: it holds a {type(checkpoint).__name__}")
    return checkpoint


def reason_of(error: Exception) -> str:
    """What a library has against a file, in some words of one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def refuse_not_finite(path: Path, values: dict[str, Any]) -> None:
    """Refuse a checkpoint with a tensor or number that is not finite, or that would take long to look through.

    Raises:
        UserError: names the first one.
    """
    left: list[tuple[str, Any, int]] = [("", values, 0)]
    for _ in range(MOST_VALUES):
        if not left:
            return
        name, value, depth = left.pop()
        match value:
            case dict() | list() | tuple() if depth == DEEPEST or len(value) > MOST_VALUES:
                break
            case dict() if not all(_is_name(key) for key in value):
                break
            case dict():
                left += [(f"{name}.{key}".lstrip("."), inner, depth + 1) for key, inner in reversed(value.items())]
            case list() | tuple():
                left += [(f"{name}.{number}", inner, depth + 1) for number, inner in reversed(list(enumerate(value)))]
            case Tensor() if value.layout != torch.strided or value.device.type != "cpu" or not _is_all_there(value):
                raise UserError(f"{path}: {name} is no tensor as a run saves it")
            case Tensor() | float() if not torch.isfinite(torch.as_tensor(value)).all():
                raise UserError(f"{path}: {name} holds numbers that are not finite; nothing can be trained from there")
    raise UserError(
        f"{path}: is no checkpoint of a run: it holds more than {MOST_VALUES:,} values, or they are nested too deeply,"
        " or their names are too long"
    )


def _is_name(key: object) -> bool:
    """What a run has for keys: names, and numbers of parameters."""
    return (isinstance(key, str) and len(key) <= LONGEST_NAME) or (isinstance(key, int) and 0 <= key <= MOST_VALUES)


def _is_all_there(tensor: Tensor) -> bool:
    """Whether each of its numbers is in the file, and not one of them many times."""
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
