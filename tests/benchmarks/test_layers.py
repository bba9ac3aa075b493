from lenet.benchmarks.in_turn import in_turn
from lenet.benchmarks.layers import BUILTIN, tasks
from lenet.layers.functional import ALGORITHMS


def test_every_operation_is_measured_for_every_contender() -> None:
    times = in_turn(tasks(batch_size=4), rounds=2)
    assert set(times) == {"training step", "conv1", "conv2", "pool1", "pool2", "pool1 max", "pool2 max"}
    for contenders in times.values():
        assert list(contenders) == [BUILTIN, *ALGORITHMS]
        assert all(len(milliseconds) == 2 and min(milliseconds) > 0 for milliseconds in contenders.values())
