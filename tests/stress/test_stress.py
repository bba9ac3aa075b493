"""The harness itself: small programs that survive or fail, in the place of train.py."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from lenet.training.checkpoint import WholeFileIO
from tests.stress import rounds
from tests.stress.rounds import EXACTLY, FAILED, PROJECT, REFUSED, Harm
from tests.stress.sameness import differences

PROGRAM = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143 if print("ended", file=sys.stderr) is None else 1))
words = dict(word.split("=", 1) for word in sys.argv[1:])
resumed = "resume" in words
run = pathlib.Path(words["resume"] if resumed else words["hydra.run.dir"])
checkpoint = run / "checkpoints" / "last.ckpt"
checkpoint.parent.mkdir(parents=True, exist_ok=True)
(run / "run.json").touch()
if not resumed:
    checkpoint.write_text("whole")
    time.sleep(9 if "round" in str(run) else 0)
"""
REFUSE = 'if checkpoint.read_text() != "whole": sys.exit("error: it is damaged")'

CASES = [
    ("SIGTERM", "", EXACTLY, None),
    ("SIGTERM", "sys.exit(resumed)", FAILED, r"(resumed|SIGTERM): ended with 1"),
    ("SIGKILL", "", EXACTLY, None),
    ("truncated checkpoint", REFUSE, REFUSED, None),
    ("truncated checkpoint", "assert not resumed", FAILED, "truncated checkpoint: ended with 1: Traceback"),
    ("flipped bit in checkpoint", "", FAILED, "1 differences .*: a weight"),
]


@pytest.mark.parametrize(("fault", "end", "result", "reason"), CASES)
def test_what_becomes_of_a_program_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, fault: str, end: str, result: str, reason: str | None
) -> None:
    monkeypatch.setattr(rounds, "FAULTS", [fault])
    monkeypatch.setattr(rounds, "EARLY_SHARE", 0)
    monkeypatch.setattr(rounds, "differences", lambda *_: ["a weight"] * fault.startswith("flipped"))
    (tmp_path / "train.py").write_text(PROGRAM + end)
    assert Harm(tmp_path, tmp_path, tmp_path).play(rounds=1, seed=0, jobs=1) == (result != FAILED)
    output = capsys.readouterr().out
    assert f"| {fault} | " + " | ".join("1" if each == result else "0" for each in rounds.RESULTS) in output
    assert reason is None or re.search(reason, output)


def make_run(folder: Path, weight: float = 1.0, accuracy: float = 0.5, points: tuple[int, ...] = (1, 2)) -> Path:
    folder.mkdir()
    WholeFileIO().save_checkpoint({"state_dict": {"bias": torch.tensor([weight])}}, folder / "checkpoints/last.ckpt")
    (folder / "metrics.json").write_text(json.dumps({"val/acc": accuracy, "seconds": id(folder)}))
    with SummaryWriter(str(folder)) as writer:
        for step in points:
            writer.add_scalar("lr", 0.1, step)
    return folder


def test_what_differs_is_named(tmp_path: Path) -> None:
    run, less = make_run(tmp_path / "a"), make_run(tmp_path / "b", points=(2,))
    assert differences(run, make_run(tmp_path / "c")) == []
    assert differences(run, less) == differences(less, run, lossy=True) == ["scalar lr"]
    assert differences(run, less, lossy=True) == []
    other = make_run(tmp_path / "d", weight=1.0 + 2**-23, accuracy=0.6)
    assert differences(run, other) == ["last.ckpt: state_dict.bias.", "metrics.json: val/acc."]


@pytest.mark.long
def test_real_runs_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(rounds, "FAULTS", ["SIGTERM", "truncated checkpoint"])
    monkeypatch.setattr(rounds, "VARIANTS", {"sgd": rounds.VARIANTS["sgd"]})
    assert Harm(PROJECT, tmp_path, tmp_path).play(rounds=2, seed=0, jobs=2), capsys.readouterr().out
