"""What Hydra's own section of a configuration may say, whoever wrote it: an override, a file, a stranger's experiment.

Hydra instantiates what `hydra.callbacks`, `hydra.launcher` and `hydra.sweeper` name, and hands `hydra.job_logging` to
Python, which calls what it names. So each configuration is looked at when it is composed, before anything is done with
it. (lenet.config has the rules for all other sections.)
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import wraps
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig, OmegaConf

from lenet.errors import UserError
from lenet.nested import parts

CALLBACKS = {"preflight": {"_target_": "lenet.cli.Preflight"}}

TARGETS = {
    "hydra.callbacks.preflight": {"lenet.cli.Preflight"},
    "hydra.sweeper": {"hydra_plugins.lenet_sweeps.Grid"},
    "hydra.launcher": {
        "hydra_plugins.lenet_sweeps.InTurn",
        "hydra_plugins.lenet_sweeps.SideBySide",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
        "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    },
}
"""The classes that each key may name."""

COMMANDS = ("python", "setup", "srun_args", "additional_parameters")
"""What the launcher of a cluster would put into a shell script."""

LOG_FILE = "${hydra.runtime.output_dir}/${hydra.job.name}.log"
JOBS_FOLDER = "${hydra.sweep.dir}/.submitit/%j"
INSTANTIATED = ("callbacks", "launcher", "sweeper", "job_logging", "hydra_logging")
INTERPOLATIONS = {LOG_FILE, JOBS_FOLDER, "${hydra.job.name}"}
"""Those that the program and its plugins have in these sections. Any other could become whatever it points to."""

LOGGING = {"version", "formatters", "handlers", "root", "loggers", "disable_existing_loggers"}
HANDLER = {"class", "formatter", "stream", "filename", "delay", "level", "mode"}
HANDLER_CLASSES = {"logging.StreamHandler", "logging.FileHandler"}
STREAMS = {"ext://sys.stdout", "ext://sys.stderr"}

PLAIN_NAME = re.compile(r"[\w-][\w.-]*")


def guard() -> None:
    """From now on, each configuration that Hydra composes in this process is looked at first."""
    compose = ConfigLoaderImpl.load_configuration
    if not hasattr(compose, "__wrapped__"):
        ConfigLoaderImpl.load_configuration = _looked_at(compose)  # type: ignore[method-assign]
    OmegaConf.register_new_resolver("oc.env", _no_environment, replace=True)


def check(section: dict[str, Any]) -> None:
    """Refuse what could start a program, or write elsewhere than in the run's folder.

    Args:
        section: Hydra's own, not resolved.

    Raises:
        UserError: names the key and its value.
    """
    for name in ("run", "sweep", "job", "callbacks", "launcher", "sweeper", "job_logging", "hydra_logging"):
        if not isinstance(section.get(name) or {}, dict):
            raise _refused(f"hydra.{name}", section[name], "should be a mapping")
    for name in INSTANTIATED:
        for key, value in parts(section.get(name) or {}, f"hydra.{name}"):
            if isinstance(value, str) and "${" in value and value not in INTERPOLATIONS:
                raise _refused(key, value, "write the value itself")
    for key, value in parts(section, "hydra"):
        owner, _, name = key.rpartition(".")
        if name == "()" or (name == "_target_" and value not in TARGETS.get(owner, ())):
            raise _refused(key, value, "only the program's own classes are (launcher=processes and the like name them)")
    callbacks = section.get("callbacks") or {}
    if others := set(callbacks) - set(CALLBACKS):
        raise _refused(f"hydra.callbacks.{min(others)}", "…", "there are no others than the program's own")
    if callbacks != CALLBACKS:
        raise _refused("hydra.callbacks", callbacks, "the program's own stay as they are")
    verbose = section.get("verbose")
    if not isinstance(verbose, bool | str | list | None):
        raise _refused("hydra.verbose", verbose, "should be true, false, or the name of a logger")
    for name in ("job_logging", "hydra_logging"):
        _check_logging(f"hydra.{name}", section.get(name) or {})
    _check_launcher(section.get("launcher") or {})
    job, sweep = section.get("job") or {}, section.get("sweep") or {}
    for key, value in (("hydra.job.name", job.get("name")), ("hydra.sweep.subdir", sweep.get("subdir"))):
        if not (value in ("???", None, "${hydra.job.num}") or PLAIN_NAME.fullmatch(str(value))):
            raise _refused(key, value, "should be a plain name, without folders")
    if section.get("output_subdir") not in (".hydra", None):
        raise _refused("hydra.output_subdir", section["output_subdir"], "should be .hydra or null")
    for name in ("env_copy", "env_set"):
        if job.get(name):  # names alone: a value may be a secret
            raise _refused(f"hydra.job.{name}", ", ".join(job[name]), "set the environment in the shell")
    if section.get("searchpath"):
        raise _refused("hydra.searchpath", section["searchpath"], "use --config-dir")


def _looked_at(compose: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    parameters = inspect.signature(compose)

    @wraps(compose)
    def load_configuration(*arguments: Any, **named: Any) -> DictConfig:
        try:
            config = compose(*arguments, **named)
        except KeyError as error:  # Hydra looks the names up while it composes
            raise _refused("hydra.job.env_copy", error, "set the environment in the shell") from None
        except (AttributeError, TypeError, ValueError, AssertionError, RecursionError) as error:
            # What Hydra did not expect to find where it looks.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"the configuration cannot be put together from these overrides ({reason})") from None
        given = parameters.bind(*arguments, **named).arguments
        if given["config_name"] is None and not given["overrides"]:
            return config  # for --hydra-help: Hydra's own, as it came
        if "hydra" in config:
            section = OmegaConf.to_container(config.hydra, resolve=False)
            assert isinstance(section, dict)
            check({str(key): value for key, value in section.items()})
        return config

    return load_configuration


def _check_logging(key: str, logging: Any) -> None:
    for inner, value in parts(logging, key):
        if inner.rpartition(".")[2] == "filename" and value != LOG_FILE:
            raise _refused(inner, value, f"should be {LOG_FILE}")
        if isinstance(value, str) and "://" in value and value not in STREAMS:
            raise _refused(inner, value, f"choose from {', '.join(sorted(STREAMS))}")
        if inner.endswith(".class") and value not in HANDLER_CLASSES:
            raise _refused(inner, value, f"choose from {', '.join(sorted(HANDLER_CLASSES))}")
    known = {"": LOGGING, "handlers": HANDLER, "formatters": {"format", "datefmt"}}
    for name, keys in known.items():
        sections = (logging.get(name) or {}) if name else {"": logging}
        for section in sections.values() if isinstance(sections, dict) else [None]:
            if not isinstance(section, dict):
                raise _refused(f"{key}.{name}", sections, "should be a mapping of mappings")
            if unknown := set(section) - keys:
                raise _refused(f"{key}.{name}.{min(unknown)}".replace("..", "."), "…", "is not among what logs need")


def _check_launcher(launcher: dict[str, Any]) -> None:
    for name in COMMANDS:
        if launcher.get(name):
            raise _refused(f"hydra.launcher.{name}", launcher[name], "prepare the shell that starts the sweep instead")
    jobs = launcher.get("jobs", 1)
    if not isinstance(jobs, int) or jobs < 1:
        raise _refused("hydra.launcher.jobs", jobs, "should be a whole number of at least 1")
    folder = launcher.get("submitit_folder", JOBS_FOLDER)
    if folder != JOBS_FOLDER:
        raise _refused("hydra.launcher.submitit_folder", folder, "jobs are kept in the sweep's folder")
    for key, value in parts(launcher, "hydra.launcher"):
        if isinstance(value, str) and len(value.splitlines()) > 1:
            raise _refused(key, repr(value), "should be one line")


def _refused(key: str, value: object, remedy: str) -> UserError:
    return UserError(f"{key}={value}: not allowed here; {remedy}")


def _no_environment(name: str, *_: str) -> str:
    # What is in the environment may be a secret, and what is in a configuration is logged, and kept with the run.
    raise UserError(
        f"${{oc.env:{name}}}: a configuration does not read the environment; let the shell do it: KEY=${name}"
    )
