"""A run's TensorBoard log: one event file in the run's own folder for each time that the run was started."""

import io
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
from google.protobuf.json_format import ParseDict
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter

from lenet.errors import UserError
from lenet.models import Stage
from lenet.monitor.drawing import PALETTE

log = logging.getLogger(__name__)

# TensorBoard's own checksum is a loop over bytes in Python: 0.3 seconds a megabyte.
pywrap_tensorflow.crc32c = google_crc32c.value

EVENT_FILES = "events.out.tfevents.*"
FIGURE_TAGS = ("figure/train_loss", "figure/train_acc", "figure/held_out_acc")
"""The three curves of the tutorial's figure. Their steps are epochs."""

FINAL_TAGS = {
    "final/held_out_acc": ("val/acc", "test/acc"),
    "final/test_acc": ("test/acc",),
    "final/train_acc": ("train/acc",),
    "final/train_loss": ("train/loss",),
    "final/examples_per_sec": ("train/examples_per_sec",),
}
"""What the HParams tab compares; each value is the first of these metrics that the run has."""


def read_events(folder: Path) -> EventAccumulator:
    """All events in a run's folder. A damaged file counts up to the damage."""
    everything = dict.fromkeys(("images", "histograms", "tensors", "scalars"), 0)  # 0: all of them, not a sample
    events = EventAccumulator(str(folder), size_guidance=everything)
    events.Reload()
    return events


class RunLogger(TensorBoardLogger):
    """Writes into the run's folder itself; fitting and testing share one event file.

    If events cannot be written (the disk is full, say), a warning says so and the run goes on without TensorBoard.

    Of a resumed run, `next_step` is the first optimizer step that comes; earlier events from there on are hidden.

    Raises:
        UserError: on first use, if no event file can be made in the folder.
    """

    def __init__(self, save_dir: str | Path, next_step: int | None = None) -> None:
        super().__init__(save_dir, name="", version="", default_hp_metric=False, purge_step=next_step)
        self._next_step = next_step

    @property
    def log_dir(self) -> str:
        return self.save_dir

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """PyTorch's writer; a stand-in that does nothing on all devices but the first."""
        try:
            writer: SummaryWriter = super().experiment
        except OSError as error:
            raise UserError(f"{self.save_dir}: TensorBoard cannot write here ({error.strerror})") from error
        file_writer: Any = writer.file_writer
        if not isinstance(file_writer.event_writer, _EventWriter):
            file_writer.event_writer.close()
            newest = max(Path(self.save_dir).glob(EVENT_FILES), key=lambda path: path.stat().st_mtime_ns)
            file_writer.event_writer = _EventWriter(newest)
        return writer

    def describe(self, config: str, stages: Sequence[Stage], input_shape: Sequence[int] = (1, 28, 28)) -> None:
        """Log the configuration (as YAML) and the graph of a network that takes images of that shape (C, H, W)."""
        self.experiment.add_text("config", f"```yaml\n{config}```", self._next_step or 0)
        if self._next_step:  # TensorBoard shows one graph a run
            return
        # Written from the stages: PyTorch's add_graph needs torch.jit.trace, which is deprecated and slow.
        nodes: list[dict[str, Any]] = [{"name": "image", "op": "Placeholder", "attr": _shape(input_shape)}]
        for stage in stages:
            figures = {"parameters": {"i": stage.parameters}, "multiply_adds": {"i": stage.multiply_adds}}
            node = {"name": stage.name, "op": stage.kind, "input": [nodes[-1]["name"]]}
            nodes.append({**node, "attr": _shape(stage.output_shape) | figures})
        graph = ParseDict({"node": nodes, "versions": {"producer": 22}}, GraphDef())
        self.experiment.file_writer.add_event(Event(graph_def=graph.SerializeToString()))

    def log_comparison(self, hyperparameters: dict[str, float | str], metrics: Mapping[str, Any], step: int) -> None:
        """Make the finished run a row of the HParams tab. What was not measured is NaN."""
        final = {}
        for tag, sources in FINAL_TAGS.items():
            final[tag] = next((metrics[key] for key in sources if metrics.get(key) is not None), math.nan)
        self.log_hyperparams(hyperparameters, final, step)

    def flush(self) -> None:
        self.experiment.flush()

    def save(self) -> None:
        """Lightning's own would write an hparams.yaml."""
        self.flush()

    def finalize(self, status: str) -> None:
        """Called after fitting and after testing. Lightning's own would close the file, and begin another."""
        self.flush()


class _EventWriter:
    """Appends events to a file, up to the first that cannot be written; TensorBoard's own uses a thread."""

    def __init__(self, path: Path) -> None:
        self._path, self._failed = path, False
        self._records = RecordWriter(path.open("ab"))

    def add_event(self, event: Event) -> None:
        self._attempt(lambda: self._records.write(event.SerializeToString()))

    def flush(self) -> None:
        self._attempt(self._records.flush)

    def close(self) -> None:
        self._attempt(self._records.close)

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            if not self._failed:
                action()
        except OSError as error:
            self._failed = True
            log.warning("%s: cannot be written (%s); the run goes on without TensorBoard", self._path, error.strerror)


def add_picture(writer: SummaryWriter, tag: str, image: Image.Image, step: int) -> None:
    """Log what lenet.monitor.drawing has drawn; PyTorch's add_image would spend more time on compression."""
    buffer = io.BytesIO()
    image.quantize(palette=PALETTE, dither=Image.Dither.NONE).save(buffer, "PNG", compress_level=1)
    encoded = Summary.Image(height=image.height, width=image.width, encoded_image_string=buffer.getvalue())
    file_writer: Any = writer.file_writer
    file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=encoded)]), step)


def _shape(shape: Sequence[int]) -> dict[str, Any]:
    """The attribute of a node in the graph that has the shape of its output for one image."""
    return {"_output_shapes": {"list": {"shape": [{"dim": [{"size": size} for size in shape]}]}}}
