from __future__ import annotations

import math
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS
from tensorboard.plugins.hparams.metadata import (
    EXPERIMENT_TAG,
    SESSION_END_INFO_TAG,
    SESSION_START_INFO_TAG,
    parse_experiment_plugin_data,
    parse_session_end_info_plugin_data,
    parse_session_start_info_plugin_data,
)

from lenet.cli import compose_settings
from lenet.models.lenet import LeNet
from lenet.monitor.events import read
from lenet.monitor.hyperparameters import hyperparameters
from lenet.monitor.tensorboard import FIGURE_TAGS, FINAL_TAGS, RunLogger
from lenet.training.run import TAGS
from tests.commands import PROJECT
from tests.conftest import Finished


def test_a_run_writes_one_event_file(finished_run: Finished) -> None:
    assert len(list(finished_run.folder.rglob("events.out.tfevents.*"))) == 1


def test_every_tag_is_there_and_nothing_else(finished_run: Finished) -> None:
    assert set(finished_run.events.Tags()["scalars"]) == {*TAGS, *FIGURE_TAGS, *FINAL_TAGS}


@pytest.mark.parametrize("tag", sorted(set(TAGS) - {"test/loss", "test/acc"}))
def test_a_point_an_epoch_at_the_optimizer_step(finished_run: Finished, tag: str) -> None:
    assert [step for step, _ in finished_run.scalars(tag)] == [20, 40, 60]  # 20 steps an epoch


@pytest.mark.parametrize("tag", ["test/loss", "test/acc"])
def test_the_test_images_are_evaluated_once(finished_run: Finished, tag: str) -> None:
    assert len(finished_run.scalars(tag)) == 1


@pytest.mark.parametrize("tag", TAGS)
def test_metrics_json_holds_the_last_point(finished_run: Finished, tag: str) -> None:
    assert finished_run.metrics[tag] == pytest.approx(finished_run.scalars(tag)[-1][1], rel=1e-6)


def test_the_resolved_configuration_is_there_as_text(finished_run: Finished) -> None:
    (event,) = finished_run.events.Tensors("config/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert "torch.optim.Adam" in text
    assert "${" not in text


def test_the_graph_is_the_list_of_stages(finished_run: Finished) -> None:
    nodes = list(finished_run.events.Graph().node)
    assert [node.name for node in nodes] == ["image", *LeNet()._modules]
    assert all(node.input == [before.name] for before, node in pairwise(nodes))
    conv2 = next(node for node in nodes if node.name == "conv2")
    assert (conv2.op, conv2.attr["parameters"].i) == ("Conv2d", 2416)
    assert [size.size for size in conv2.attr["_output_shapes"].list.shape[0].dim] == [16, 10, 10]


def test_the_tutorials_figure_has_epochs_below(finished_run: Finished) -> None:
    for tag, source in zip(FIGURE_TAGS, ("train/loss", "train/acc", "val/acc"), strict=True):
        points = [value for _, value in finished_run.scalars(source)]
        assert finished_run.scalars(tag) == list(zip([1, 2, 3], points, strict=True))
    (event,) = finished_run.events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    assert list(layout.category[0].chart[0].multiline.tag) == list(FIGURE_TAGS)


def test_the_row_to_compare_runs_by_is_complete(finished_run: Finished) -> None:
    contents = finished_run.events.PluginTagToContent("hparams")
    start = parse_session_start_info_plugin_data(contents[SESSION_START_INFO_TAG])
    assert start.hparams["optimizer"].string_value == "Adam"
    assert start.hparams["optimizer.lr"].number_value == 0.001
    experiment = parse_experiment_plugin_data(contents[EXPERIMENT_TAG])
    assert [info.name.tag for info in experiment.metric_infos] == list(FINAL_TAGS)
    assert {info.name for info in experiment.hparam_infos} == set(start.hparams)
    for tag, (source, *_) in FINAL_TAGS.items():
        assert finished_run.scalars(tag)[0][1] == pytest.approx(finished_run.metrics[source], rel=1e-6)
    assert parse_session_end_info_plugin_data(contents[SESSION_END_INFO_TAG]).status == STATUS_SUCCESS


def test_a_run_that_fails_is_told_from_one_that_goes_on(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    logger.begin_comparison({"optimizer.lr": 0.5})
    logger.close()
    contents = read(tmp_path).PluginTagToContent("hparams")
    assert parse_session_end_info_plugin_data(contents[SESSION_END_INFO_TAG]).status == STATUS_FAILURE


@pytest.mark.parametrize("values", [[1.0, 1.0 + 1e-7], [0.0, 1e-44], [2.0, 2.0], [1e30, -1e30]])
def test_a_histogram_of_values_that_hardly_differ(tmp_path: Path, values: list[float]) -> None:
    logger = RunLogger(tmp_path)
    logger.histogram("weights", np.array(values, np.float32), step=1)
    logger.close()
    histogram = read(tmp_path).Histograms("weights")[0].histogram_value
    assert sum(histogram.bucket) == histogram.num == 2
    assert np.isfinite(histogram.sum_squares)


def test_what_was_not_measured_is_no_number(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    logger.begin_comparison({"optimizer.lr": 0.5})
    logger.finish_comparison({"train/loss": 0.5, "val/acc": None, "test/acc": 0.25})
    logger.close()
    values = {tag: read(tmp_path).Scalars(tag)[0].value for tag in FINAL_TAGS}
    assert values["final/held_out_acc"] == values["final/test_acc"] == 0.25
    assert math.isnan(values["final/train_acc"])


@pytest.mark.parametrize("choice", ["model=lenet_norm", "optimizer=adamw", "scheduler=onecycle", "experiment=sprint"])
def test_all_runs_are_compared_by_the_same_keys_of_the_same_types(choice: str) -> None:
    one, other = (hyperparameters(compose_settings(PROJECT, *overrides)) for overrides in ([], [choice]))
    assert {key: type(value) for key, value in one.items()} == {key: type(value) for key, value in other.items()}
    assert one != other


def test_an_event_is_on_the_disk_within_five_seconds(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    logger.experiment.add_scalar("early", 1.0)  # the first event is written at once, with the file's beginning
    logger.experiment.flush()
    logger.log_metrics({"late": 2.0}, step=7)
    deadline = time.monotonic() + 5.5  # five seconds, and what the thread takes to write it
    while "late" not in read(tmp_path).Tags()["scalars"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    logger.close()
