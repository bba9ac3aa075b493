"""A run's TensorBoard log: an event file in the run's own folder, and one more each time that the run is resumed."""

from __future__ import annotations

import io
import logging
import math
import time
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from PIL import Image
from tensorboard.compat.proto.attr_value_pb2 import AttrValue
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.node_def_pb2 import NodeDef
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.versions_pb2 import VersionDef
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.writer import FileWriter

from lenet.models.summary import Stage
from lenet.monitor.events import PATTERN, EventFile, cut_back

log = logging.getLogger(__name__)

FIGURE_TAGS = ("figure/train_loss", "figure/train_acc", "figure/held_out_acc")
"""The three curves of the tutorial's figure. Their steps are epochs."""

FINAL_TAGS = {
    "final/held_out_acc": ("val/acc", "test/acc"),
    "final/test_acc": ("test/acc",),
    "final/train_acc": ("train/acc",),
    "final/train_loss": ("train/loss",),
    "final/examples_per_sec": ("train/examples_per_sec",),
}
"""What the HParams tab compares, every run having them all: the first of these measures that the run has."""

BINS = 30
"""Of a histogram: TensorBoard shows so many, whatever it is given."""


class _FileWriter(FileWriter):
    def __init__(self, events: EventFile) -> None:
        self.event_writer = events


class _Writer(SummaryWriter):
    """Torch's, into an event file of ours."""

    def __init__(self, events: EventFile) -> None:
        self._own_writer = _FileWriter(events)
        super().__init__(log_dir=str(events.path.parent))

    def _get_file_writer(self) -> FileWriter:
        return self._own_writer


class RunLogger(TensorBoardLogger):
    """Writes into `folder` itself. Lightning's logger would begin a second event file when fitting ends and testing
    begins, and leave an empty hparams.yaml; this one stays open until `close`.

    It also keeps each scalar, so that a run that is resumed can write its curves anew where event files are damaged.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False)  # no folders below this one
        self.folder = folder
        self._compares = False
        self._scalars: list[tuple[str, float, int | None, float]] = []  # tag, value, step, time
        self._before: list[dict[str, Any]] = []  # event files of the run before it was resumed
        self._events: EventFile | None = None
        self._writer_of_events: _Writer | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> _Writer:
        """Torch's writer."""
        if self._writer_of_events is None:
            self._events = self._events or EventFile(self.folder)
            self._writer_of_events = _Writer(self._events)
        return self._writer_of_events

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars."""
        for tag, value in metrics.items():
            self.scalar(tag, float(value), step)

    @rank_zero_only
    def scalar(self, tag: str, value: float, step: int | None = None) -> None:
        """Log one scalar."""
        now = time.time()
        self._scalars.append((tag, value, step, now))
        self.experiment.add_scalar(tag, value, step, now)

    def state(self) -> dict[str, Any]:
        """What `resume` needs to go on from here."""
        files = list(self._before)
        if (now := self._events) is not None:
            # A file that could not be written has lost events: none like it will be found.
            files.append({"name": now.path.name, "size": now.size, "crc32c": -1 if now.failed else now.crc32c})
        return {"files": files, "scalars": [list(each) for each in self._scalars], "compares": self._compares}

    def resume(self, state: Mapping[str, Any] | None, next_step: int) -> bool:
        """Go on from a state, before anything is logged: what was logged after it is removed. None is the beginning.

        Returns:
            Whether the events before are still there. If not, their scalars are written anew.
        """
        files, scalars = (state["files"], state["scalars"]) if state is not None else ([], [])
        self._scalars = [(tag, value, step, when) for tag, value, step, when in scalars]
        whole = cut_back(self.folder, files)
        if whole:
            self._before = list(files)
            self._compares = bool(state and state["compares"])
        else:
            log.warning("%s: event files are damaged; curves are written anew, earlier pictures are lost", self.folder)
            for path in self.folder.glob(PATTERN):
                path.replace(path.with_name(f"damaged.{path.name.partition('tfevents.')[2]}"))
        self._events = EventFile(self.folder, next_step if self._before else None)
        if not whole:
            for tag, value, step, when in self._scalars:
                self.experiment.add_scalar(tag, value, step, when)
        return whole and bool(files)

    def describe(self, config: str, stages: Sequence[Stage]) -> None:
        """Log the configuration (as YAML) and the network's graph."""
        self.experiment.add_text("config", f"```yaml\n{config}```")
        # Written from the stages: torch.jit.trace, which PyTorch's add_graph needs, is deprecated, and takes a second.
        self._writer.add_event(Event(graph_def=_graph(stages).SerializeToString()))

    def lay_out_figure(self) -> None:
        """Let the custom-scalars tab show the tutorial's figure."""
        self.experiment.add_custom_scalars({"LeNet": {"loss and accuracy by epoch": ["Multiline", list(FIGURE_TAGS)]}})

    def begin_comparison(self, hyperparameters: Mapping[str, float | str], shown: Container[str] = ()) -> None:
        """Make the run a row of the HParams tab, which shows some columns from the start; `finish_comparison` completes
        the row.
        """
        kinds = {name: "STRING" if isinstance(value, str) else "FLOAT64" for name, value in hyperparameters.items()}
        columns = [
            # Columns that "differ" come first in TensorBoard, and of those it shows five.
            api_pb2.HParamInfo(name=name, type=api_pb2.DataType.Value(f"DATA_TYPE_{kind}"), differs=name in shown)
            for name, kind in kinds.items()
        ]
        metrics = [
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=tag.partition("/")[2])
            for tag in FINAL_TAGS
        ]
        experiment = api_pb2.Experiment(hparam_infos=columns, metric_infos=metrics)
        self._tell_hparams(metadata.EXPERIMENT_TAG, experiment=experiment)
        start = SessionStartInfo(start_time_secs=time.time())
        for name, value in hyperparameters.items():
            if isinstance(value, str):
                start.hparams[name].string_value = value
            else:
                start.hparams[name].number_value = value
        self._tell_hparams(metadata.SESSION_START_INFO_TAG, session_start_info=start)
        self._compares = True

    def finish_comparison(self, metrics: Mapping[str, Any] | None) -> None:
        """Complete the run's row with its measures; None if the run failed. What was not measured is NaN."""
        if not self._compares:
            return
        self._compares = False
        if metrics is not None:
            for tag, sources in FINAL_TAGS.items():
                measured = [value for name in sources if (value := metrics.get(name)) is not None]
                self.scalar(tag, measured[0] if measured else math.nan)
        status = api_pb2.STATUS_SUCCESS if metrics is not None else api_pb2.STATUS_FAILURE
        end = SessionEndInfo(status=status, end_time_secs=time.time())
        self._tell_hparams(metadata.SESSION_END_INFO_TAG, session_end_info=end)

    def _tell_hparams(self, tag: str, **content: Any) -> None:
        about = metadata.create_summary_metadata(HParamsPluginData(**content))
        self._writer.add_summary(Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)]))

    def picture(self, tag: str, image: Image.Image, step: int) -> None:
        """Log a picture."""
        buffer = io.BytesIO()
        # The least of compression: it takes a third of the time, and the pictures are small.
        image.save(buffer, "PNG", compress_level=1)
        content = Summary.Image(
            height=image.height,
            width=image.width,
            colorspace=len(image.getbands()),
            encoded_image_string=buffer.getvalue(),
        )
        self._writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=content)]), step)

    def histogram(self, tag: str, values: NDArray[np.floating[Any]], step: int) -> None:
        """Log how values are distributed, in as many bins as TensorBoard shows."""
        values = values.astype(np.float64)  # in single precision, values may lie too close for so many bins
        try:
            counts, limits = np.histogram(values, BINS)
        except ValueError:  # even so: they are huge, and all the same
            return
        self.experiment.add_histogram_raw(
            tag,
            values.min(),
            values.max(),
            values.size,
            values.sum(),
            np.square(values).sum(),
            limits[1:].tolist(),
            counts.tolist(),
            step,
        )

    def save(self) -> None:
        """Events are on the disk already; Lightning's own would write an hparams.yaml."""

    def finalize(self, status: str) -> None:
        """Called at the end of fitting and of testing, which is not yet the end."""

    def close(self) -> None:
        """Call when the run is over, however it ended."""
        self.finish_comparison(None)
        if self._events is not None:
            self._events.close()

    @property
    def _writer(self) -> Any:
        return self.experiment._get_file_writer()


def _graph(stages: Sequence[Stage]) -> GraphDef:
    """One stage after the other, each with the shape of its output for one image."""
    nodes = [NodeDef(name="image", op="Placeholder", attr=_attributes((1, 28, 28)))]
    for stage in stages:
        figures = {"parameters": stage.parameters, "multiply_adds": stage.multiply_adds}
        attributes = _attributes(stage.output_shape) | {key: AttrValue(i=value) for key, value in figures.items()}
        nodes.append(NodeDef(name=stage.name, op=stage.kind, input=[nodes[-1].name], attr=attributes))
    return GraphDef(node=nodes, versions=VersionDef(producer=22))


def _attributes(shape: Sequence[int]) -> dict[str, AttrValue]:
    sizes = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in shape])
    return {"_output_shapes": AttrValue(list=AttrValue.ListValue(shape=[sizes]))}
