import math
import os
from itertools import pairwise
from pathlib import Path

import pytest
from tensorboard.plugins.hparams import metadata as hparams

from lenet.models import LeNet, stages
from lenet.monitor.tensorboard import FINAL_TAGS, RunLogger, read_events
from tests.training.small import event_files, fit, largest_file, scalars


def test_fitting_and_testing_write_one_event_file_and_nothing_else(tmp_path: Path) -> None:
    fit([], RunLogger(tmp_path), test=True)
    assert list(tmp_path.iterdir()) == event_files(tmp_path)
    assert len(event_files(tmp_path)) == 1
    assert {"train/loss", "val/acc", "test/acc", "lr"} <= set(read_events(tmp_path).Tags()["scalars"])


def test_a_resumed_run_hides_the_steps_that_it_repeats(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    logger.describe("a: 1\n", stages(LeNet()))
    for step in (1, 2, 3):
        logger.log_metrics({"loss": float(step)}, step)
    logger.flush()
    logger = RunLogger(tmp_path, next_step=3)
    logger.describe("a: 2\n", stages(LeNet()))
    logger.log_metrics({"loss": 30.0}, 3)
    logger.flush()
    assert len(event_files(tmp_path)) == 2
    assert scalars(tmp_path, "loss") == [(1, 1.0), (2, 2.0), (3, 30.0)]
    summaries = read_events(tmp_path).Tensors("config/text_summary")
    texts = [event.tensor_proto.string_val[0].decode() for event in summaries]
    assert ["a: 1" in texts[0], "a: 2" in texts[1]] == [True, True]


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_a_damaged_file_counts_up_to_the_damage(tmp_path: Path, damage: str) -> None:
    for first in (1, 3):
        logger = RunLogger(tmp_path, next_step=None if first == 1 else first)
        for step in (first, first + 1):
            logger.log_metrics({"loss": float(step)}, step)
        logger.flush()
    path = event_files(tmp_path)[0]
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content[:-5] if damage == "truncated" else content)
    assert scalars(tmp_path, "loss") == [(1, 1), (3, 3), (4, 4)]


def test_the_graph_is_the_list_of_stages(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    logger.describe("", stages(LeNet()))
    logger.flush()
    nodes = list(read_events(tmp_path).Graph().node)
    assert [node.name for node in nodes] == ["image", *(name for name, _ in LeNet().named_children())]
    assert all(node.input == [before.name] for before, node in pairwise(nodes))
    conv2 = next(node for node in nodes if node.name == "conv2")
    assert (conv2.op, conv2.attr["parameters"].i) == ("Conv2d", 2416)
    assert [size.size for size in conv2.attr["_output_shapes"].list.shape[0].dim] == [16, 10, 10]


def test_a_finished_run_is_a_row_of_the_hparams_tab(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)
    settings = {"optimizer": {}, "optimizer._target_": "torch.optim.Adam", "optimizer.lr": 0.5, "data.root": "data"}
    settings |= {"model.channels": [6, 16], "model.norm": None, "model.pool._partial_": True, "test_every_epoch": True}
    logger.log_comparison(settings, {"train/loss": 0.5, "test/acc": 0.25}, step=7)
    logger.flush()
    assert len(list(tmp_path.iterdir())) == 1
    events = read_events(tmp_path)
    values = {tag: events.Scalars(tag)[0].value for tag in FINAL_TAGS}
    assert values["final/held_out_acc"] == values["final/test_acc"] == 0.25
    assert math.isnan(values["final/train_acc"])
    contents = events.PluginTagToContent("hparams")
    start = hparams.parse_session_start_info_plugin_data(contents[hparams.SESSION_START_INFO_TAG])
    shown = {key: value.string_value or value.number_value or value.bool_value for key, value in start.hparams.items()}
    assert shown == {"optimizer": "Adam", "optimizer.lr": 0.5, "model.channels": "[6, 16]", "test_every_epoch": True}
    experiment = hparams.parse_experiment_plugin_data(contents[hparams.EXPERIMENT_TAG])
    assert {info.name.tag for info in experiment.metric_infos} == set(FINAL_TAGS)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_is_reported_by_the_next_event(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path)

    def write() -> None:
        for step in range(2000):
            logger.log_metrics({"loss": float(step)}, step)
            logger.flush()

    with largest_file(20_000), pytest.raises(OSError, match=os.strerror(27)):  # the file is too large
        write()
    assert len(read_events(tmp_path).Scalars("loss")) > 100
