"""Between the command line and a run: errors in one line, checks before a run has a folder, a folder of its own."""

import contextlib
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from lenet import folders
from lenet.config import AUTO, CONF, PROJECT, Settings, as_word, closest_key, no_such_key, read_settings, with_home
from lenet.errors import DISK_ERRORS, UserError, did_you_mean, printable
from lenet.processes import is_first, is_started_by_lightning, launched
from lenet.signals import Interrupted, raising

log = logging.getLogger(__name__)

# Hydra then raises its errors instead of printing them in several lines; start() prints them in one.
_HYDRA_RAISES = "HYDRA_FULL_ERROR"


def _check_processes(settings: Settings) -> None:
    """Refuse to be several processes that do not train together, or to wait for others that nobody starts."""
    count, device = launched(), settings.device
    named = f"device.devices={device.devices}, device.num_nodes={device.num_nodes}"
    if count is not None and count != device.total:
        raise UserError(
            f"{named}: {device.total} in all, and {count} processes were started; start as many, with device=ddp, or"
            " one alone"
        )
    if count is None and device.total > 1 and "SLURM_NTASKS" in os.environ:
        raise UserError(f"{named}: under SLURM, srun starts the processes: srun python train.py …")
    if count is None and device.num_nodes > 1 and not {"MASTER_ADDR", "NODE_RANK"} <= os.environ.keys():
        raise UserError(
            f"{named}: nothing starts the processes on the other machines; use torchrun or srun, or set MASTER_ADDR,"
            " MASTER_PORT and NODE_RANK and start it on each machine"
        )


def _end_with_parent() -> None:
    """From now on, let this process end when the one that started it is gone: it would wait for that for ever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# What a process that Lightning started has in its environment is this program's own wish.
_user_wants_traceback = os.environ.get(_HYDRA_RAISES) == "1" and not is_started_by_lightning()


def start(main: Callable[[], Any]) -> None:
    """Run train.py's Hydra application, and leave signals, logging and environment as they were."""
    root = logging.getLogger()
    before, level, environment = list(root.handlers), root.level, os.environ.get(_HYDRA_RAISES)
    os.environ[_HYDRA_RAISES] = "1"
    logging.raiseExceptions = False  # a full disk is reported by those who need what they could not write
    try:
        with one_line_errors(), raising():
            if is_started_by_lightning():
                _end_with_parent()
            _check_words(sys.argv[1:])
            # Hydra takes settings on one side of an option alone; a user may write one anywhere.
            sys.argv[1:] = sorted(with_home(sys.argv[1:]), key=lambda word: not re.match("-m$|--multirun$|--.+=", word))
            with tempfile.TemporaryDirectory() as scratch:
                if not (is_first() or is_started_by_lightning()):  # it would write into the first one's folder
                    sys.argv += [f'hydra.run.dir="{scratch}"', "hydra.output_subdir=null"]
                main()
    finally:
        logging.raiseExceptions = True
        root.handlers[:] = before
        root.setLevel(level)
        if environment is None:
            os.environ.pop(_HYDRA_RAISES, None)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what the user can mend into one line on stderr and exit status 1; HYDRA_FULL_ERROR=1 shows all."""
    for folder in (str(PROJECT), str(Path.cwd())):  # for the user's own classes
        if folder not in sys.path:
            sys.path.insert(0, folder)
    try:
        yield
        sys.stdout.flush()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        line = f"error: {_one_line(error)}"
        if _in_sweep():
            # The job's own log says at once why it failed; Hydra goes on with the next one.
            log.error("%s", printable(line))
            raise
        if _user_wants_traceback:
            raise
        _exit(line, status=1)
    except BrokenPipeError:  # whoever read the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in DISK_ERRORS or _in_sweep() or _user_wants_traceback:
            raise
        where = error.filename or "a file"  # a full disk has no name
        _exit(f"error: {where}: cannot be used ({error.strerror}); make room, or let it be read and written", 1)
    except Exception:
        if _in_sweep():
            log.exception("a defect of this program, or of a library")  # in the job's own log too
        raise
    except (Interrupted, KeyboardInterrupt) as interrupt:
        signum = getattr(interrupt, "signum", signal.SIGINT)
        what = "interrupted" if signum == signal.SIGINT else f"ended by {signal.Signals(signum).name}"
        # Of one that Lightning has started, another status would have Lightning kill the first, which has more to do.
        status = 0 if is_started_by_lightning() else 128 + signum
        _exit("; ".join([what, *map(str, interrupt.args)]), status)


class Preflight(Callback):
    """Before a run has a folder: checks its configuration, device and data, then claims a folder of its own."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            with one_line_errors():
                self._check(config)
        except Exception:  # Hydra would turn it into a warning and go on
            traceback.print_exc()
            sys.exit(1)

    def _check(self, config: DictConfig) -> None:
        if is_started_by_lightning():
            return  # the process that started this one has checked
        settings = read_settings(config)
        if settings.resume == AUTO:
            folder = folders.chosen(config, "hydra.run.dir")
            if folder is None:
                raise UserError("resume=auto: needs the same folder each time: add hydra.run.dir=FOLDER")
            with read_write(config):
                config.resume = str(folder) if (folder / "run.json").exists() else None
            settings = read_settings(config)
        if settings.sweep.resume is not None:
            raise UserError(f"sweep.resume={settings.sweep.resume}: belongs to a sweep; add -m")
        if settings.resume is None:
            folders.refuse_taken(config, "hydra.run.dir")

        from lenet.training import resume, run  # loads torch, which a mistake above need not wait for

        _check_processes(settings)
        if settings.resume is not None:
            settings = resume.resumed(settings, config.hydra.overrides.task)
            if finished := resume.finished(settings):
                print(finished)
                sys.exit(0)
            with read_write(config), open_dict(config):
                config.hydra.run.dir = settings.resume
                config.hydra.output_subdir = None  # what the first start wrote there, stays
        if not is_first():
            return
        run.check(settings)
        if settings.resume is None:
            folders.claim(config, "hydra.run.dir")


# Mistakes


def _check_words(words: Sequence[str]) -> None:
    """Refuse settings that are written as options, and numbers as choices; Hydra says what else is wrong."""
    for word in words:
        key, _, value = word.lstrip("-").partition("=")
        meant = closest_key(key) if word.startswith("--") else None
        if meant is not None:
            raise UserError(f"{word}: settings are written without dashes: {meant}={value or 'VALUE'}")
        if re.fullmatch(r"null|true|false|[\d.]+", value) and (CONF / key).is_dir():
            choices = sorted(file.stem for file in (CONF / key).glob("*.yaml"))
            raise UserError(f"{word}: no such choice (choose from {', '.join(choices)})")


def _one_line(error: Exception) -> str:
    text = f"{error} {error.__cause__ or ''}"
    match error:
        case UserError():
            return str(error)
        case MissingConfigException() if error.missing_cfg_file and error.options:
            group, _, choice = error.missing_cfg_file.rpartition("/")
            close = did_you_mean(choice, error.options)
            return f"{group}={choice}: no such choice{close} (choose from {', '.join(error.options)})"
        case OverrideParseException():
            key, _, value = str(error.override).partition("=")
            word = as_word(key, value) if value.strip() else f"{key.strip()}=VALUE"
            return f"{error.override}: cannot be read as KEY=VALUE; if the value is meant so, write {word}"
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


def _exit(line: str, status: int) -> None:
    line = printable(line)
    if is_first():
        for handler in logging.getLogger().handlers:  # train.log, if the run has come so far
            if isinstance(handler, logging.FileHandler):
                with contextlib.suppress(OSError):  # it may be what cannot be written
                    handler.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, line, (), None))
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        print(line, file=sys.stderr, flush=True)
    sys.exit(status)
