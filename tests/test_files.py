from __future__ import annotations

import os
from pathlib import Path

import pytest

from lenet.files import MOST_BYTES, read_json, write_whole


@pytest.mark.parametrize("planted", ["link", "pipe", "left over"])
def test_nothing_is_written_through_what_is_in_the_way(tmp_path: Path, planted: str) -> None:
    precious, part = tmp_path / "precious", tmp_path / ".run.json.part"
    precious.write_text("thesis")
    if planted == "link":
        part.symlink_to(precious)
    elif planted == "pipe":
        os.mkfifo(part)
    else:
        part.write_text("half")
    write_whole(tmp_path / "run.json", b"whole")
    assert (tmp_path / "run.json").read_bytes() == b"whole"
    assert precious.read_text() == "thesis"
    assert not part.exists()


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text("before")
    (tmp_path / ".run.json.part").mkdir()
    with pytest.raises(OSError, match=r"\.run\.json\.part"):
        write_whole(path, b"after")
    assert path.read_text() == "before"


def test_json_that_no_run_writes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    for content in ("[" * 100_000, "[" * 30 + "]" * 30, '{"a":' * 21 + "1" + "}" * 21):
        path.write_text(content)
        with pytest.raises(ValueError, match="nested too deeply"):
            read_json(path)
    os.truncate(path, MOST_BYTES + 1)
    with pytest.raises(ValueError, match="67,108,865 bytes"):
        read_json(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="no file"):
        read_json(path)


def test_json_as_runs_write_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"a": {"b": [1, {"c": null}]}}')
    assert read_json(path) == {"a": {"b": [1, {"c": None}]}}
