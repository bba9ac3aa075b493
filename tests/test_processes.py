"""How many cores a process may use."""

import os
from pathlib import Path

import pytest

from lenet.processes import cores


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 7), ("150000 100000", 2), ("50000 100000", 1), (None, 7)]
)
def test_cores_follow_affinity_and_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)), raising=False)
    group = Path("/proc/self/cgroup").read_text().rpartition(":")[2].strip().lstrip("/")
    if quota is not None:
        (tmp_path / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / group / "cpu.max").write_text(quota)
    assert cores(tmp_path) == expected
