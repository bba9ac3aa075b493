from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

from lenet.monitor.events import EventFile
from lenet.training import checkpoint_file
from tests.conftest import Finished
from tests.stress.sameness import differences


def checkpoint(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        path = folder / "checkpoints" / "last.ckpt"
        content = checkpoint_file.read(path)
        change(content)
        path.write_bytes(checkpoint_file.encode(content))

    return changed


def one_bit_of_a_weight(content: dict[str, Any]) -> None:
    bias = content["state_dict"]["net.fc3.bias"]
    bias[0] = torch.nextafter(bias[0], torch.tensor(1.0))


def a_moment(content: dict[str, Any]) -> None:
    content["optimizer_states"][0]["state"][0]["exp_avg"][0] += 1


def a_measure(folder: Path) -> None:
    path = folder / "metrics.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "val/acc": content["val/acc"] + 1e-9}))


def a_point(folder: Path) -> None:
    file = EventFile(folder)
    file.add_event(Event(step=99, summary=Summary(value=[Summary.Value(tag="val/acc", simple_value=0.5)])))
    file.close()


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "weight": (checkpoint(one_bit_of_a_weight), "last.ckpt: state_dict.net.fc3.bias"),
    "weight more": (checkpoint(lambda content: content["state_dict"].update(more=torch.zeros(1))), "last.ckpt: state_"),
    "weight less": (checkpoint(lambda content: content["state_dict"].pop("net.fc3.bias")), "last.ckpt: state_dict"),
    "moment": (checkpoint(a_moment), "last.ckpt: optimizer_states.0.state.0.exp_avg"),
    "measure": (a_measure, "metrics.json: val/acc"),
    "point": (a_point, "curve val/acc"),
    "best": (lambda folder: (folder / "checkpoints" / "best.ckpt").unlink(), "best.ckpt: one has it"),
}


def test_a_run_is_like_itself(finished_run: Finished, tmp_path: Path) -> None:
    assert differences(finished_run.folder, shutil.copytree(finished_run.folder, tmp_path / "copy")) == []


@pytest.mark.parametrize("change", CHANGES)
def test_what_differs_is_named(finished_run: Finished, tmp_path: Path, change: str) -> None:
    copy = shutil.copytree(finished_run.folder, tmp_path / "copy")
    alter, name = CHANGES[change]
    alter(copy)
    for pair in ((finished_run.folder, copy), (copy, finished_run.folder)):
        (found,) = differences(*pair)
        assert found.startswith(name)
