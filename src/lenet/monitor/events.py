"""TensorBoard's event files: read, written, and with checksums that do not take longer than the pictures in them."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event, SessionLog, SourceMetadata
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow
from tensorboard.summary.writer.record_writer import RecordWriter

log = logging.getLogger(__name__)

# TensorBoard's own goes through the bytes one by one in Python, three tenths of a second for a megabyte.
pywrap_tensorflow.crc32c = google_crc32c.value

EVERYTHING = {"images": 0, "histograms": 0, "tensors": 0, "scalars": 0}
"""Zero is TensorBoard's word for all of them, instead of a sample."""

PATTERN = "events.out.tfevents.*"
"""The names of event files."""

_numbers = itertools.count()


def read(folder: Path) -> EventAccumulator:
    """All events in a run's folder, as far as they are on the disk."""
    events = EventAccumulator(str(folder), size_guidance=EVERYTHING)
    events.Reload()
    return events


class EventFile:
    """Writes a new event file, each event at once. What cannot be written is left out, and said once: a run goes on
    without TensorBoard.

    (TensorBoard's own writer has a thread, which dies when it cannot write.)

    Args:
        folder: gets the file.
        first_step: a TensorBoard that has this folder open forgets what it has seen of this step and later ones.

    Attributes:
        path: of the file.
        size: how many bytes were written.
        crc32c: their checksum.
        failed: whether an event could not be written; what follows is not tried.
    """

    def __init__(self, folder: Path, first_step: int | None = None) -> None:
        # As TensorBoard names them: in the order of their names they follow each other.
        name = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self.path = folder / PATTERN.replace("*", name)
        self.size, self.crc32c, self.failed = 0, 0, False
        self._records = RecordWriter(self)
        try:
            self._stream = self.path.open("xb", buffering=0)
        except OSError as error:
            self._fail(error)
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2", source_metadata=SourceMetadata()))
        if first_step is not None:
            start = SessionLog(status=SessionLog.START)
            self.add_event(Event(wall_time=time.time(), step=first_step, session_log=start))

    def add_event(self, event: Event) -> None:
        """Append an event."""
        if not self.failed:
            self._records.write(event.SerializeToString())

    def write(self, content: bytes) -> None:
        """Append bytes; TensorBoard's record writer calls it."""
        if self.failed:
            return
        try:
            self._put(content)
        except OSError as error:
            self._fail(error)
            return
        self.size += len(content)
        self.crc32c = google_crc32c.extend(self.crc32c, content)

    def _put(self, content: bytes) -> None:
        if self._stream.write(content) != len(content):  # what there was room for
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing can be written any more."""
        if not self.failed:
            self._stream.close()
            self.failed = True

    def _fail(self, error: OSError) -> None:
        self.failed = True
        log.warning("%s: cannot be written (%s); the run goes on without TensorBoard", self.path, error.strerror)

    def get_logdir(self) -> str:
        """The folder; torch's writer asks for it."""
        return str(self.path.parent)


def cut_back(folder: Path, files: Sequence[dict[str, Any]]) -> bool:
    """Bring a folder's event files back to what they were, if they still hold it.

    Args:
        folder: of the run.
        files: name, size and crc32c of each file as it was.

    Returns:
        Whether that could be done; if not, nothing was changed.
    """
    contents = {path.name: path for path in folder.glob(PATTERN)}
    for file in files:
        path = contents.get(file["name"])
        if path is None:
            return False
        try:
            with path.open("rb") as stream:
                content = stream.read(file["size"])
        except OSError:
            return False
        if len(content) != file["size"] or google_crc32c.value(content) != file["crc32c"]:
            return False
    sizes = {file["name"]: file["size"] for file in files}
    for name, path in contents.items():
        if name in sizes:
            os.truncate(path, sizes[name])
        else:
            path.unlink()
    return True
