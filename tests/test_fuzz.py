"""The command line with random overrides: never a traceback, a hang, or a file outside the run's folder."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lenet.config import known_keys
from tests.commands import Commands

EXAMPLES = int(os.environ.get("LENET_FUZZ", "25"))
"""So many overrides are drawn; LENET_FUZZ=500 takes some minutes."""

SMALL = (
    "data=synthetic", "data.train_size=60", "data.val_size=10", "data.test_size=10", "data.batch_size=20",
    "trainer.max_epochs=1", "trainer.max_steps=2", "dashboard=minimal",
)  # fmt: skip
ELSEWHERE = {"data.root", "resume", "sweep.resume"}  # name folders that may be anywhere

words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
keys = st.one_of(st.sampled_from(sorted({*known_keys()} - ELSEWHERE)), words)
numbers = st.one_of(st.integers(), st.integers(-3, 70_000), st.floats(), st.sampled_from([10**30, 2**31, 2**63, 1e308]))
values = st.one_of(
    numbers.map(str),
    words,
    st.sampled_from(["null", "true", "nan", "-inf", "???", "", "[]", "{}", "[1,2]", "{a:1}", "os.system", "../../x"]),
    st.sampled_from(["${seed}", "${nothing.here}", "${oc.env:HOME}", "${", "${.}", "lenet", "adam", "ddp", "bf16"]),
)
overrides = st.one_of(
    st.builds("{}{}={}".format, st.sampled_from(["", "", "", "+", "++", "~"]), keys, values),
    words.filter(lambda word: word.lstrip()[:1] != "-"),
    st.sampled_from(["--help", "--version", "--cfg=job", "--nothing", "-x", "--", "="]),
)


@pytest.mark.long
@settings(max_examples=EXAMPLES, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(override=overrides)
def test_any_override_trains_or_gets_a_line(commands: Commands, tmp_path: Path, override: str) -> None:
    place = tmp_path / "place"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    command = commands.start("train.py", *SMALL, f"hydra.run.dir={place / 'run'}", override, cwd=place)
    try:
        status = command.wait(20)
    except subprocess.TimeoutExpired:  # it was asked for much
        command.send_signal(signal.SIGTERM)
        status = command.wait(20)
    _, errors = command.communicate()
    assert "Traceback" not in errors, errors
    assert status in (0, 1, 2, 143), (status, errors)
    assert status == 0 or errors.strip(), "ends without a word"
    assert {path.name for path in place.iterdir()} <= {"run"}
