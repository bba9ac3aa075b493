"""The command line with whatever comes: never a traceback, never a hang, never a file outside the run's folder."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lenet.config import known_keys
from tests.commands import PROJECT, Commands

EXAMPLES = int(os.environ.get("LENET_FUZZ", "25"))
"""So many overrides are drawn; LENET_FUZZ=500 takes some minutes."""

PATIENCE_SECONDS = 15

# What stays fast when everything in it is right.
SMALL = (
    "data=synthetic", "data.train_size=60", "data.val_size=10", "data.test_size=10", "data.batch_size=20",
    "trainer.max_epochs=1", "trainer.max_steps=2", "dashboard=minimal",
)  # fmt: skip

# These name folders that may be anywhere, and may be made there.
FREE = {"data.root", "resume", "sweep.resume"}

SECTIONS = (
    "model",
    "layers",
    "optimizer",
    "scheduler",
    "device",
    "data",
    "trainer",
    "experiment",
    "launcher",
    "checkpoint",
)
HYDRA = (
    "hydra.job.name", "hydra.job.chdir", "hydra.output_subdir", "hydra.callbacks", "hydra.launcher", "hydra.verbose",
    "hydra.callbacks.preflight._target_", "hydra.sweep.subdir", "hydra.mode", "hydra.job_logging.root.level",
    "hydra.searchpath", "hydra.runtime.output_dir", "hydra/launcher", "hydra/job_logging", "hydra.job.env_set",
    "hydra.job_logging.handlers.file.filename", "hydra.hydra_logging.handlers.console.stream", "hydra.run",
)  # fmt: skip

words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
keys = st.one_of(
    st.sampled_from(sorted(set(known_keys()) - FREE)),
    st.sampled_from(SECTIONS),
    st.sampled_from(HYDRA),
    st.builds("{}.{}".format, st.sampled_from(SECTIONS), words),
    words,
)
numbers = st.one_of(
    st.integers(), st.integers(-3, 70_000), st.floats(), st.sampled_from([10**30, -(10**18), 2**31, 2**63, 0, 1, 1e308])
)
interpolations = st.sampled_from(
    ["${seed}", "${optimizer.lr}", "${nothing.here}", "${oc.env:HOME}", "${now:%Y}", "${project:}", "${", "${seed",
     "${.}", "${hydra.run.dir}", "${oc.decode:${seed}}", "${oc.create:{a:1}}", "${a:${a:${a:1}}}", "${resume}"]
)  # fmt: skip
flat_values = st.one_of(
    numbers.map(str),
    words,
    words.map(lambda word: "'" + word.replace("\\", "").replace("'", "") + "'"),
    interpolations,
    st.sampled_from(
        ["null", "true", "false", "nan", "inf", "-inf", "???", "", "[]", "{}", "os.system", "../../x", "/x"]
    ),
    words.map(lambda word: word * 500),
    st.sampled_from(["lenet", "lenet_relu", "sgd", "adam", "cosine", "gpu", "ddp", "im2col", "d2l", "sprint", "bf16"]),
)
values = st.recursive(
    flat_values,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda parts: "[" + ",".join(parts) + "]"),
        st.lists(inner, max_size=3).map(
            lambda parts: "{" + ",".join(f"a{n}:{each}" for n, each in enumerate(parts)) + "}"
        ),
    ),
    max_leaves=6,
)
overrides = st.one_of(
    st.builds("{}{}={}".format, st.sampled_from(["", "", "", "", "+", "++", "~"]), keys, values),
    words.filter(lambda word: word.lstrip()[:1] != "-"),
    keys.map("~{}".format),
    st.sampled_from(["--help", "--version", "--cfg=job", "-m", "--nothing", "-x", "--", "="]),
)


def project_files() -> set[Path]:
    return {path for folder in (PROJECT, PROJECT / "src" / "lenet", PROJECT / "conf") for path in folder.iterdir()}


def test_whatever_is_said(commands: Commands, tmp_path: Path) -> None:
    before = project_files()
    place = tmp_path / "place"

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        phases=[Phase.generate],
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(overrides)
    def check(override: str) -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        command = commands.start("train.py", *SMALL, f"hydra.run.dir={place / 'run'}", override, cwd=place)
        try:
            status = command.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:  # much was asked of it
            command.send_signal(signal.SIGTERM)
            status = command.wait(PATIENCE_SECONDS)
        _, said = command.communicate()
        assert "Traceback" not in said, said
        assert status in (0, 1, 2, 143), (status, said)
        assert status == 0 or said.strip(), "ends without a word"
        assert {path.name for path in place.iterdir()} <= {"run"}
        assert project_files() <= before | {PROJECT / "outputs"}

    check()
