from __future__ import annotations

from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from lenet.cli import compose_config, compose_settings
from lenet.errors import UserError
from tests.commands import PROJECT
from tests.conftest import TrainCommand


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("+hydra.callbacks.evil._target_=os.system", "hydra.callbacks.evil._target_=os.system"),
        ("+hydra.callbacks.evil={}", "hydra.callbacks.evil"),
        ("hydra.callbacks.preflight._target_=os.system", "hydra.callbacks.preflight._target_=os.system"),
        ("hydra.launcher._target_=os.system", "hydra.launcher._target_=os.system"),
        ("hydra.sweeper._target_=os.system", "hydra.sweeper._target_=os.system"),
        ("+hydra.sweeper.more={_target_:os.system}", "hydra.sweeper.more._target_=os.system"),
        ("hydra.job_logging.handlers.file.filename=/tmp/x", "hydra.job_logging.handlers.file.filename=/tmp/x"),
        ("hydra.job_logging.handlers.console.class=subprocess.Popen", "handlers.console.class=subprocess.Popen"),
        ("hydra.hydra_logging.handlers.console.stream=ext://os.environ", "console.stream=ext://os.environ"),
        ("+hydra.hydra_logging.filters={x:{a:b}}", "hydra.hydra_logging.filters"),
        ("+hydra.job_logging.formatters.plain.class=os.system", "formatters.plain.class=os.system"),
        ("hydra.job.name=../../x", "hydra.job.name=../../x"),
        ("hydra.sweep.subdir=../x", "hydra.sweep.subdir=../x"),
        ("hydra.sweep.subdir=..", "hydra.sweep.subdir=.."),
        ("hydra.output_subdir=../x", "hydra.output_subdir=../x"),
        ("+hydra.job.env_set.PATH=/x", "hydra.job.env_set"),
        ("hydra.job.env_copy=[NOT_THERE]", "hydra.job.env_copy"),
        ("hydra.job.env_copy=[PATH]", "hydra.job.env_copy=PATH"),
        ("hydra/launcher=submitit_slurm hydra.launcher.setup=[evil]", "hydra.launcher.setup=['evil']"),
        ("hydra/launcher=submitit_slurm +hydra.launcher.additional_parameters={a:evil}", "additional_parameters="),
        ("hydra.launcher=x", "hydra.launcher=x"),
        ("hydra/sweeper=basic", "hydra.sweeper._target_=hydra._internal"),
        ("hydra.verbose={a:b}", "hydra.verbose={'a': 'b'}"),
        ("hydra.callbacks.preflight='${oc.create:{_target_:builtins.print}}'", "hydra.callbacks.preflight="),
        ("+evil={_target_:builtins.print} hydra.callbacks.preflight=${evil}", "hydra.callbacks.preflight=${evil}"),
        ("+evil={_target_:os.system} +hydra.callbacks.preflight.x=${evil}", "hydra.callbacks.preflight.x=${evil}"),
        ("+hydra.callbacks.preflight.x=1", "hydra.callbacks={"),
        ("~hydra.callbacks.preflight", "hydra.callbacks={"),
        ("+evil={_target_:os.system} hydra.sweeper=${evil}", "hydra.sweeper=${evil}"),
        ("+evil={_target_:os.system} +hydra.sweeper.x=${evil}", "hydra.sweeper.x=${evil}"),
        ("data.root=ext://os.environ hydra.job_logging.handlers.console.stream=${data.root}", "console.stream=${data"),
        (
            "hydra/launcher=submitit_slurm hydra.launcher.partition=${data.root}",
            "hydra.launcher.partition=${data.root}",
        ),
        ("hydra.job_logging.handlers=x", "hydra.job_logging.handlers=x"),
        ("hydra/launcher=submitit_slurm hydra.launcher.submitit_folder=/x", "hydra.launcher.submitit_folder=/x"),
        ("hydra/launcher=submitit_slurm 'hydra.launcher.partition=\"a\nevil\"'", "hydra.launcher.partition="),
    ],
)
def test_hydras_own_section_names_nothing_else(override: str, key: str) -> None:
    words = [word[1:-1] if word.startswith("'") else word for word in override.split(" ")]
    with pytest.raises(UserError, match="not allowed here") as refused:
        compose_config(PROJECT, "train", words)
    assert key in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    "override",
    [
        "hydra.run.dir=/somewhere/else",
        "hydra.verbose=true",
        "hydra.output_subdir=null",
        "launcher=processes",
        "launcher=slurm",
        "hydra/launcher=submitit_local",
        "hydra/job_logging=disabled",
        "hydra/hydra_logging=default",
    ],
)
def test_what_users_need_of_it_stays(override: str) -> None:
    compose_config(PROJECT, "train", [override])


def test_a_file_of_a_stranger_is_no_way_around(train_command: TrainCommand, tmp_path: Path) -> None:
    conf = tmp_path / "conf" / "experiment"
    conf.mkdir(parents=True)
    evil = f"hydra:\n  callbacks:\n    evil:\n      _target_: os.system\n      command: touch {tmp_path / 'executed'}\n"
    (conf / "evil.yaml").write_text(f"# @package _global_\n{evil}")
    run = train_command("data=synthetic", "experiment=evil", "--config-dir", str(conf.parent), folder=tmp_path / "run")
    assert run.status == 1
    assert run.stderr.startswith("error: hydra.callbacks.evil")
    assert len(run.stderr.splitlines()) == 1
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("key", ["data.root", "seed", "optimizer.lr"])
def test_a_configuration_does_not_read_the_environment(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("TOKEN", "hunter2")
    with pytest.raises((UserError, OmegaConfBaseException, HydraException)) as refused:
        compose_settings(PROJECT, f"{key}=${{oc.env:TOKEN}}")
    assert "does not read the environment" in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_nothing_of_the_environment_is_in_what_a_run_leaves(
    train_command: TrainCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-of-the-cloud")
    small = ("data.train_size=300", "data.val_size=100", "data.test_size=50", "trainer.max_epochs=1")
    run = train_command("data=synthetic", *small)
    assert run.status == 0
    assert "hunter2" not in run.stdout
    files = [path for path in run.folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not any(b"hunter2" in path.read_bytes() for path in files)
