"""The lines about runs that were ended; whole ones are in tests.test_resume and tests.test_ended."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from lenet.training.endings import cannot_write

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_remedy_is_one_that_helps(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert str(cannot_write(run / "x", FULL, run)).startswith(f"{run}: was removed or moved away")
    run.mkdir()
    assert str(cannot_write(run / ".lock", FULL, run)).endswith("start the run again, in another folder")
    (run / "run.json").touch()
    assert str(cannot_write(run / "x", FULL, run, "all is whole")) == (
        f"{run / 'x'}: cannot be written (No space left on device); all is whole; make room or let it be written, and"
        f" python train.py resume={run} goes on"
    )
