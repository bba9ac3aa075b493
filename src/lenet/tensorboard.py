"""A run's TensorBoard log: one event file, in the run's own folder."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
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

from lenet import events  # noqa: F401 - its checksums
from lenet.summary import Stage

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


class RunLogger(TensorBoardLogger):
    """Writes into `folder` itself. Lightning's logger would begin a second event file when fitting ends and testing
    begins, and leave an empty hparams.yaml; this one stays open until `close`.
    """

    def __init__(self, folder: Path) -> None:
        # Empty name and version: no folders below this one. An event reaches the disk within five seconds.
        super().__init__(folder, name="", version="", default_hp_metric=False, flush_secs=5)
        self._compares = False

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
                self.experiment.add_scalar(tag, measured[0] if measured else math.nan)
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
        counts, limits = np.histogram(values, BINS)
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
        """Bring everything to the disk."""
        self.experiment.flush()

    def finalize(self, status: str) -> None:
        """Called at the end of fitting and of testing."""
        self.save()

    def close(self) -> None:
        """Call when the run is over, however it ended."""
        self.finish_comparison(None)
        self.experiment.close()

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
