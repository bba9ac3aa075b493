from __future__ import annotations

import pytest

from lenet.training import TAGS
from tests.conftest import Finished


def test_a_run_writes_one_event_file(finished_run: Finished) -> None:
    assert len(list(finished_run.folder.rglob("events.out.tfevents.*"))) == 1


def test_every_tag_is_there_and_nothing_else(finished_run: Finished) -> None:
    assert set(finished_run.events.Tags()["scalars"]) == set(TAGS)


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


def test_the_graph_is_there(finished_run: Finished) -> None:
    names = {node.name for node in _graph(finished_run).node}
    assert any("conv2" in name for name in names)


def _graph(run: Finished):  # type: ignore[no-untyped-def]
    from tensorboard.compat.proto.graph_pb2 import GraphDef

    graph = run.events.Graph()
    assert isinstance(graph, GraphDef)
    return graph
