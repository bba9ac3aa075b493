"""The harness that harms runs: programs that are made to survive or to fail, in the place of train.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.stress import chaos

BEGIN = """
import pathlib, signal, sys, time

def end(*_):
    sys.exit(143 if print("ended by SIGTERM", file=sys.stderr) is None else 1)

signal.signal(signal.SIGTERM, end)
words = dict(word.split("=", 1) for word in sys.argv[1:])
resumed = "resume" in words
run = pathlib.Path(words["resume"] if resumed else words["hydra.run.dir"])
checkpoint = run / "checkpoints" / "last.ckpt"
checkpoint.parent.mkdir(parents=True, exist_ok=True)
(run / "run.json").touch()
"""
TRAIN = """
if not resumed:
    checkpoint.write_text("whole")
    time.sleep(0 if "undisturbed" in run.name else 9)
"""
REFUSE = """
if checkpoint.read_text() != "whole":
    sys.exit("error: it is damaged")
"""
SAY_NOTHING, FAIL_LATER, CRASH = (
    "signal.signal(signal.SIGTERM, signal.SIG_DFL)",
    "sys.exit(resumed)",
    "assert not resumed",
)

CASES = [
    ("SIGTERM", TRAIN, (), chaos.EXACTLY, None),
    ("SIGTERM", TRAIN, ("a weight",), chaos.FAILED, "differs from the undisturbed run: a weight"),
    ("SIGTERM", SAY_NOTHING + TRAIN, (), chaos.FAILED, "SIGTERM: ended with -15"),
    ("SIGTERM", TRAIN + FAIL_LATER, (), chaos.FAILED, "(resumed|SIGTERM: ended with):? 1"),
    ("SIGKILL", TRAIN, (), chaos.EXACTLY, None),
    ("truncated checkpoint", TRAIN, (), chaos.EXACTLY, None),
    ("truncated checkpoint", TRAIN + REFUSE, (), chaos.REFUSED, None),
    ("truncated checkpoint", TRAIN + CRASH, (), chaos.FAILED, "last.ckpt damaged: 1: Traceback"),
    ("flipped bit in checkpoint", TRAIN + REFUSE, ("a weight",), chaos.FAILED, "differs from the undisturbed run"),
]


@pytest.mark.parametrize(("fault", "program", "differences", "result", "reason"), CASES)
def test_what_becomes_of_a_harmed_program_is_counted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
    program: str,
    differences: tuple[str, ...],
    result: str,
    reason: str | None,
) -> None:
    monkeypatch.setattr(chaos, "FAULTS", (fault,))
    monkeypatch.setattr(chaos, "EARLY_SHARE", 0)
    monkeypatch.setattr(chaos, "TRAINING_SECONDS", 0.1)
    monkeypatch.setattr(chaos, "differences", lambda *_: list(differences))
    (tmp_path / "train.py").write_text(BEGIN + program)
    assert chaos.chaos(tmp_path, tmp_path, rounds=2, seed=0, jobs=2, data=tmp_path) == (result != chaos.FAILED)
    lines = capsys.readouterr().out.splitlines()
    header, _, row, _ = (line.split(" | ") for line in lines if line.startswith("|"))
    counts = dict(zip([name.strip("| ") for name in header], [count.strip("| ") for count in row], strict=True))
    zeros = dict.fromkeys((chaos.EXACTLY, chaos.REFUSED, chaos.FAILED), "0")
    assert counts == {"fault": fault, "times injected": "2", **zeros, result: "2"}
    failures = [line for line in lines if line.startswith("round ")]
    assert len(failures) == (2 if reason else 0)
    assert all(re.search(rf"HarmError\(['\"]{reason}", line) for line in failures)
