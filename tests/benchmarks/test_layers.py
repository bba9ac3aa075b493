from lenet.benchmarks.layers import CONTENDERS, compare, report


def test_the_report_divides_the_times_of_the_same_round() -> None:
    times = {"conv1": {"builtin": [0.01, 0.02, 0.04], "im2col": [0.02, 0.06, 0.04]}}
    lines = report(times).splitlines()
    assert "3 rounds" in lines[0]
    assert [line.split() for line in lines[2:]] == [
        ["conv1", "builtin", "20.00"],
        ["conv1", "im2col", "2.00", "(1.00–3.00)", "40.00"],
    ]


def test_every_operation_is_measured_for_every_contender() -> None:
    times = compare(rounds=2, batch_size=4)
    expected = {"training step", "conv1", "conv2", "pool1", "pool2", "pool1 max", "pool2 max"}
    assert set(times) == expected
    for operation in expected:
        assert set(times[operation]) == set(CONTENDERS)
        assert all(len(seconds) == 2 for seconds in times[operation].values())
