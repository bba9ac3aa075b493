"""A run's TensorBoard log: one event file in the run's own folder for each time that the run was started."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
from google.protobuf.json_format import ParseDict
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow
from torch.utils.tensorboard import SummaryWriter

from lenet.models import LayerRow
from lenet.monitor.drawing import PALETTE

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

NOT_COMPARED = (
    *("callbacks", "checkpoint", "dashboard", "data.mirrors", "data.root", "deterministic", "device", "fuse", "layers"),
    *("logger", "sweep", "trainer.log_every_n_steps"),
)
"""Settings that do not change a result."""


def read_events(folder: Path) -> EventAccumulator:
    """All events in a run's folder. A damaged file counts up to the damage."""
    everything = dict.fromkeys(("images", "histograms", "tensors", "scalars"), 0)  # 0: all of them, not a sample
    events = EventAccumulator(str(folder), size_guidance=everything)
    events.Reload()
    return events


class RunLogger(TensorBoardLogger):
    """Writes into the run's folder itself; fitting and testing share one event file.

    Of a resumed run, `next_step` is the first optimizer step that comes; earlier events from there on are hidden.
    """

    def __init__(self, save_dir: str | Path, next_step: int | None = None) -> None:
        super().__init__(save_dir, name="", version="", default_hp_metric=False, purge_step=next_step)
        self._next_step = next_step

    @property
    def log_dir(self) -> str:
        return self.save_dir

    def describe(self, config: str, rows: Sequence[LayerRow], input_shape: Sequence[int] = (1, 28, 28)) -> None:
        """Log the configuration (as YAML) and the graph of a network that takes images of that shape (C, H, W)."""
        self.experiment.add_text("config", f"```yaml\n{config}```", self._next_step or 0)
        if self._next_step or not rows:  # TensorBoard shows one graph a run
            return
        # Written from the table: PyTorch's add_graph needs torch.jit.trace, which is deprecated and slow.
        nodes: list[dict[str, Any]] = [{"name": "image", "op": "Placeholder", "attr": _shape(input_shape)}]
        for row in rows:
            figures = {"parameters": {"i": row.parameters}, "multiply_adds": {"i": row.multiply_adds}}
            node = {"name": row.name, "op": row.kind, "input": [nodes[-1]["name"]]}
            nodes.append({**node, "attr": _shape(row.output_shape) | figures})
        graph = ParseDict({"node": nodes, "versions": {"producer": 22}}, GraphDef())
        self.experiment.file_writer.add_event(Event(graph_def=graph.SerializeToString()))

    def log_comparison(self, settings: Mapping[str, Any], metrics: Mapping[str, Any], step: int) -> None:
        """Make the finished run a row of the HParams tab, by settings such as {"optimizer.lr": 0.9}.

        Classes are named without their modules. What was not measured is NaN.
        """
        compared: dict[str, float | str] = {}
        for key, value in settings.items():
            is_plain = isinstance(value, str | int | float | list) and not key.endswith("_partial_")
            if is_plain and not key.startswith(NOT_COMPARED):
                name = key.removesuffix("._target_")
                text = str(value).rpartition(".")[2] if name != key else str(value)
                compared[name] = value if isinstance(value, int | float) else text
        final = {}
        for tag, sources in FINAL_TAGS.items():
            final[tag] = next((metrics[key] for key in sources if metrics.get(key) is not None), math.nan)
        self.log_hyperparams(compared, final, step)

    def flush(self) -> None:
        self.experiment.flush()

    def save(self) -> None:
        """Lightning's own would write an hparams.yaml."""
        self.flush()

    def finalize(self, status: str) -> None:
        """Called after fitting and after testing. Lightning's own would close the file, and start another."""
        self.flush()


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
