from lenet.benchmarks.train import report


def test_medians_and_the_ratio_round_by_round() -> None:
    figures = {"this project": [20.0, 30.0, 24.0], "template": [10.0, 10.0, 6.0]}
    lines = report(figures).splitlines()
    assert "3 rounds" in lines[0]
    assert lines[2].split() == ["this", "project", "24", "(20–30)", "examples/s"]
    assert lines[3].split() == ["template", "10", "(6–10)", "examples/s"]
    assert lines[4] == "this project ÷ template: 3.00 (2.00–4.00)"
