from pathlib import Path

import pytest

from lenet.files import read_json, write_json, write_whole


def test_the_content_before_is_kept_under_another_name(tmp_path: Path) -> None:
    (tmp_path / ".last.part").write_text("what a killed process has left")
    for content in (b"1", b"2", b"3"):
        write_whole(tmp_path / "last", content, previous=tmp_path / "previous")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"last": b"3", "previous": b"2"}


def test_what_cannot_be_written_is_named_and_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"ü": 0.1})
    (tmp_path / ".run.json.part").mkdir()
    with pytest.raises(OSError, match=r"run\.json"):
        write_whole(path, b"after")
    assert read_json(path) == {"ü": 0.1}
