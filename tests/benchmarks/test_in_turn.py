from functools import partial

import pytest

from lenet.benchmarks.in_turn import in_turn, report


@pytest.mark.parametrize(("more_is_faster", "ratio"), [(True, "2.00 (1.50–4.00)"), (False, "0.50 (0.25–0.67)")])
def test_the_report_has_medians_and_the_ratios_of_each_round(more_is_faster: bool, ratio: str) -> None:
    numbers = {"small": {"ours": [20.0, 30.0, 24.0], "plain": [10.0, 20.0, 6.0]}}
    first, head, ours, plain = report(numbers, "ours", "images/s", ".0f", more_is_faster).splitlines()
    assert "3 rounds" in first
    assert head.startswith("small")
    assert ours.split() == ["ours", "24", "(20–30)"]
    assert plain.split() == ["plain", "10", "(6–20)", *ratio.split()]


def test_each_round_starts_with_another_contender() -> None:
    calls: list[str] = []

    def count(name: str) -> float:
        calls.append(name)
        return len(calls)

    numbers = in_turn({"task": {name: partial(count, name) for name in "abc"}}, rounds=4)
    assert "".join(calls) == "abcbcacababc"
    assert numbers == {"task": {"a": [1, 6, 8, 10], "b": [2, 4, 9, 11], "c": [3, 5, 7, 12]}}
