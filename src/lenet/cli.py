"""Between the command line and a run: errors in one line, checks before a run has a folder, a folder of its own."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import re
import signal
import sys
import tempfile
import traceback
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lenet import folders, preflight, trust
from lenet.config import Settings, closest_key, did_you_mean, no_such_key, read_settings
from lenet.errors import UserError, printable
from lenet.sweeps.isolation import end_with
from lenet.training import resume
from lenet.training.signals import raise_at_once, signum_of

log = logging.getLogger(__name__)

# Hydra then raises its errors instead of printing them in several lines; start() prints them in one.
_HYDRA_RAISES = "HYDRA_FULL_ERROR"
_user_wants_traceback = os.environ.get(_HYDRA_RAISES) == "1"

SURROUNDINGS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR}
"""Not this program's defects, but where it runs."""

_PARENT = "LENET_PARENT"
"""In the environment of processes that Lightning starts: the number of the first one."""

_SWEEP_FLAGS = ("-m", "--multirun")
# fmt: off
_FLAGS = {
    "-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "--resolve", "-p", "--package", "-r", "--run",
    "-m", "--multirun", "-sc", "--shell-completion", "-cp", "--config-path", "-cn", "--config-name",
    "-cd", "--config-dir", "-i", "--info",
}
# fmt: on

_COMPLETION = re.compile(r"(install|uninstall|query)=\w+")


def start(main: Callable[[], Any], project: Path) -> None:
    """Run a Hydra application whose outputs and data lie below `project`, wherever it was started from."""
    # Loading torch and Lightning makes hardly any garbage; looking for it seven times meanwhile takes half a second.
    # A run enables it again.
    gc.disable()
    logging.raiseExceptions = False  # a full disk is told by those who need what they could not write
    _open_closed_streams()
    raise_at_once()
    _register_project(project)
    os.environ[_HYDRA_RAISES] = "1"
    with one_line_errors():
        if preflight.is_started_by_lightning():
            if _PARENT in os.environ:
                end_with(int(os.environ[_PARENT]))  # it could wait for it for half an hour
        else:
            os.environ[_PARENT] = str(os.getpid())
        _check_flags(sys.argv[1:])
        # Hydra takes settings on one side of -m alone; a user may write it anywhere.
        sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in _SWEEP_FLAGS)
        _check_surroundings()
        with _folder_of_its_own(), _stdout_flushed():
            main()


@contextlib.contextmanager
def _stdout_flushed() -> Iterator[None]:
    """What stdout does not take is told, while it can be; unless it was closed by who read it."""
    try:
        yield
    except BrokenPipeError:
        pass
    except SystemExit as end:
        if end.code not in (0, None):
            raise
    except OSError as error:
        if error.errno not in SURROUNDINGS or error.filename is not None or Preflight.claimed is not None:
            raise
        raise _no_stdout(error) from None  # so far there is no other file without a name
    try:
        sys.stdout.flush()
    except OSError as error:
        _to_nowhere(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            raise _no_stdout(error) from None


def _no_stdout(error: OSError) -> UserError:
    return UserError(f"stdout: cannot be written ({error.strerror}); make room")


def _open_closed_streams() -> None:
    """Where a shell has closed stdout or stderr, what is said goes nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123 - as long as the program runs


def _check_surroundings() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the current folder was removed; change to another one") from None


@contextlib.contextmanager
def _folder_of_its_own() -> Iterator[None]:
    """For a process that torchrun or SLURM has started beside the first: Hydra would write into the first one's folder.

    (Processes that Lightning starts are told by it.)
    """
    if preflight.is_started_by_lightning() or preflight.is_first():
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        sys.argv += [f'hydra.run.dir="{folder}"', "hydra.output_subdir=null"]
        yield


@contextlib.contextmanager
def job(project: Path) -> Iterator[None]:
    """Around each run: its errors in one line. It may be in another process than `start`, or on another machine."""
    _register_project(project)
    with one_line_errors():
        yield


def compose_settings(project: Path, *overrides: str) -> Settings:
    """The settings that `train.py` in `project` would run with these overrides; for scripts and tests.

    Raises:
        UserError, HydraException: as the command line would refuse them.
    """
    return read_settings(compose_config(project, "train", overrides))


def compose_config(project: Path, head: str, overrides: Sequence[str]) -> DictConfig:
    """What the file conf/`head`.yaml and these overrides make, unchecked.

    Raises:
        HydraException: as the command line would refuse them.
    """
    _register_project(project)
    with initialize_config_dir(str(project / "conf"), version_base="1.3"):
        return compose(head, overrides=list(overrides))


def at_least_one(text: str) -> int:
    """A script's argument that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text}: should be a whole number of at least 1")
    return int(text)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what the user can mend into one line on stderr and exit status 1; HYDRA_FULL_ERROR=1 shows all."""
    try:
        yield
    except (UserError, HydraException, OmegaConfBaseException) as error:
        line = f"error: {_one_line(error)}"
        if _in_sweep():
            # The job's own log says at once why it failed; Hydra goes on with the next one.
            log.error(printable(line))
            raise
        if _user_wants_traceback and _speaks():
            raise
        _exit(line, status=1)
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith("Unable to configure"):  # Python, of logging
            _exit(f"error: hydra.job_logging, hydra.hydra_logging: {error} ({error.__cause__})", status=1)
        if isinstance(error, OSError) and error.errno in SURROUNDINGS and not _in_sweep() and not _user_wants_traceback:
            where = error.filename or Preflight.claimed or "a file"  # a full disk has no name
            _exit(f"error: {where}: cannot be used ({error.strerror}); make room, or let it be read and written", 1)
        if _in_sweep():
            log.exception("a defect of this program, or of a library")  # in the job's own log too
        raise
    except KeyboardInterrupt as interrupt:
        signum = signum_of(interrupt)
        what = "interrupted" if signum == signal.SIGINT else f"ended by {signal.Signals(signum).name}"
        # Of one that Lightning has started, another status would have Lightning kill the first, which has more to do.
        status = 0 if preflight.is_started_by_lightning() else 128 + signum
        _exit("; ".join([what, *map(str, interrupt.args)]), status)


class Preflight(Callback):
    """Before a run has a folder: checks its configuration, device and data, then claims a folder of its own.

    Attributes:
        claimed: that folder.
    """

    claimed: Path | None = None

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _nothing_swallowed(), one_line_errors():
            if config.get("resume") is not None:
                resume.take_over(config, not preflight.is_first())
            if preflight.is_started_by_lightning():
                return  # the process that started this one has done the rest
            settings = read_settings(config)
            preflight.check_processes(settings)
            if settings.resume is not None and (finished := resume.finished(Path(settings.resume), settings)):
                if preflight.is_first():
                    print(f"{settings.resume}: is finished; {finished}")
                sys.exit(0)  # each process: a first one that ends well would leave the others waiting for it
            if not preflight.is_first():
                return  # the first process does the rest
            if settings.sweep.resume is not None:
                raise UserError(f"sweep.resume={settings.sweep.resume}: belongs to a sweep; add -m")
            preflight.check(settings)
            if settings.resume is None:
                folders.refuse_taken(config, "hydra.run.dir")
            from lenet.training.run import check  # torch loads here, and a mistake above need not wait for it

            check(settings)
            if settings.resume is None:
                Preflight.claimed = folders.claim(config, "hydra.run.dir")


@contextlib.contextmanager
def _nothing_swallowed() -> Iterator[None]:
    """Hydra turns an exception in a callback into a warning and goes on; let a defect of ours end the program."""
    try:
        yield
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _register_project(project: Path) -> None:
    trust.guard()
    OmegaConf.register_new_resolver("project", lambda: str(project), replace=True)


def _check_flags(arguments: Sequence[str]) -> None:
    if {"-r", "--run"} & set(arguments) and set(_SWEEP_FLAGS) & set(arguments):
        raise UserError("--run, --multirun: exclude each other; leave one out")
    if {"-sc", "--shell-completion"} & set(arguments) and not any(map(_COMPLETION.match, arguments)):
        raise UserError("--shell-completion: add what to do: install=bash, uninstall=bash; or fish, or zsh")
    for argument in arguments:
        if argument.startswith("-") and argument.split("=")[0] not in _FLAGS:
            name = argument.lstrip("-")
            key = name.partition("=")[0]
            close = closest_key(key)
            value = name.partition("=")[2] or "VALUE"
            is_setting = "=" in name or close is not None
            meant = f"settings are written without dashes: {close or key}={value}" if is_setting else "see --help"
            raise UserError(f"{argument}: no such option; {meant}")


def _one_line(error: Exception) -> str:
    text = " ".join(str(part) for part in (error, error.__cause__) if part is not None)
    match error:
        case UserError():
            return str(error)
        case MissingConfigException() if error.missing_cfg_file and error.options:
            group, _, choice = error.missing_cfg_file.rpartition("/")
            return (
                f"{group}={choice}: no such choice{did_you_mean(choice, error.options)}"
                f" (choose from {', '.join(error.options)})"
            )
        case OverrideParseException():
            return (
                f"{error.override}: cannot be read as KEY=VALUE, without spaces around =; see --help, and quote what"
                " the shell would change"
            )
        case ConfigCompositionException() if named := re.search(r"An item is already at '([^']*)'", text):
            return f"+{named[1]}: the key exists already; write it without the +"
        case ConfigCompositionException() if named := re.search(r"Could not override '([^']*)'", text):
            return no_such_key(named[1])
        case ConfigCompositionException() if named := re.search(r"Ambiguous value for argument '([^']*)'", text):
            return (
                f"{named[1]}: several values make a sweep; add -m (or, if the comma belongs to one value, quotes around"
                " the value, and others around all of it for the shell)"
            )
        case _:
            return " ".join(text.split())


def _in_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _speaks() -> bool:
    """Whether what goes wrong is to be told: by one process on each machine, as it may be wrong on that alone."""
    try:
        if preflight.started_elsewhere():
            return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "SLURM_LOCALID"))
        return preflight.is_first()
    except UserError:  # what is wrong is where it looks
        return True


def _say(line: str) -> None:
    """On stderr, if somebody still reads it; Python's own end would otherwise have another exit status."""
    for stream, words in ((sys.stdout, ""), (sys.stderr, f"{line}\n")):
        try:
            stream.write(words)
            stream.flush()
        except OSError:
            _to_nowhere(stream)


def _to_nowhere(stream: TextIO) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _exit(line: str, status: int) -> None:
    line = printable(line)
    if _speaks():
        for handler in logging.getLogger().handlers:  # train.log, if the run has come so far
            if isinstance(handler, logging.FileHandler):
                with contextlib.suppress(OSError):  # it may be what cannot be written
                    handler.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, line, (), None))
        _say(line)
    logging.disable()  # that was the last word; a library that was interrupted while it loads has its own at exit
    sys.exit(status)
