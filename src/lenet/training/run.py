"""One run: builds the parts from a configuration, fits, tests, and leaves everything in the run's folder."""

import contextlib
import copy
import logging
import math
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.fabric.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from lenet import folders
from lenet.config import AUTO, Settings, dotted, read_settings
from lenet.data import ImageDataModule
from lenet.errors import DISK_ERRORS, DivergenceError, UserError, flat
from lenet.fast.memory import garbage_collector_frozen, keep_freed_memory
from lenet.files import read_json, write_json
from lenet.folders import RESULT
from lenet.models import stages, table
from lenet.monitor.dashboard import Dashboard
from lenet.monitor.progress import Progress
from lenet.monitor.tensorboard import RunLogger
from lenet.monitor.throughput import Throughput
from lenet.processes import cores
from lenet.signals import Interrupted
from lenet.training import checkpoint, parts, resume
from lenet.training.module import Classifier
from lenet.training.signals import EndOnSignal

log = logging.getLogger(__name__)

TAGS = [*(f"{split}/{name}" for split in ("train", "val", "test") for name in ("loss", "acc")), "lr"]
TAGS += ["train/examples_per_sec"]
"""What a run measures: in metrics.json, and as scalars in TensorBoard."""

LOCK_TIMEOUT_SECONDS = 30
"""A job whose sweep was killed finishes its epoch and saves; whoever resumes it waits so long."""


def train(config: DictConfig) -> float | None:
    """Run the configuration of a Hydra job in the folder that Hydra made for it; returns the best val/acc, if any.

    In a sweep, a job that is done is not done again, and one that was cut off resumes.
    """
    hydra = HydraConfig.get()
    settings = read_settings(config, hydra.overrides.task)
    folder, in_sweep = Path(hydra.runtime.output_dir), hydra.mode == RunMode.MULTIRUN
    if settings.resume == AUTO:  # in a process that Lightning has started; the first one has begun the run
        settings = settings.model_copy(update={"resume": str(folder)})
    if in_sweep and (folder / RESULT).exists():
        return cast("float | None", read_json(folder / RESULT)["best_val_acc"])
    if in_sweep:
        check(settings)  # a single run was checked before it got a folder
    if in_sweep and (folder / checkpoint.RUN_FILE).exists():
        settings = settings.model_copy(update={"resume": str(folder)})
    elif settings.resume is not None:
        settings = resume.resumed(settings, hydra.overrides.task)
        folder = Path(str(settings.resume))
    introduce, lock_timeout = not in_sweep or hydra.job.num == 0, LOCK_TIMEOUT_SECONDS if in_sweep else 0
    result = run(settings, folder, introduce=introduce, lock_timeout=lock_timeout)
    return cast("float | None", result["best_val_acc"])


def check(settings: Settings) -> None:
    """Make each part once and obtain the data, before a run has a folder; a UserError names what is wrong."""
    parts.quiet_libraries()
    parts.trainer_of(settings, logger=False, enable_checkpointing=False)
    parts.callbacks_of(settings)
    parts.loggers_of(settings, Path(), None)
    data = parts.data_of(settings)
    data.prepare_data()
    data.setup("fit")
    classifier = parts.classifier_of(settings, data)
    if isinstance(data, ImageDataModule):
        _try_out(settings, classifier, data)
    try:
        optimizer = classifier.make_optimizer()
        if classifier.scheduler_factory is not None:
            classifier.make_schedule(optimizer, total_steps=10)
    except (IndexError, TypeError, ValueError) as error:
        raise UserError(f"optimizer, scheduler: {flat(error)}") from error


def _try_out(settings: Settings, classifier: Classifier, data: ImageDataModule) -> None:
    """Apply the network, and what belongs to its training, to the smallest batch that one device will get."""
    images, labels = data.images("train")
    smallest = max(1, (len(images) % data.batch_size or data.batch_size) // settings.device.total)
    images, labels, wanted = images[:smallest, None], labels[:smallest], (smallest, data.classes)
    with _blamed("augment: cannot be applied to a batch of training images"):
        augmented, targets = classifier.augmented(images, labels)
        if targets.shape not in (labels.shape, wanted):
            raise ValueError(f"it should return (images, labels), labels (N,) or (N, {data.classes})")
    if (augmented.shape, augmented.dtype) != (images.shape, images.dtype):
        found = f"{tuple(augmented.shape)} {augmented.dtype}"
        raise UserError(f"augment: makes images {found} of {tuple(images.shape)} {images.dtype}")
    sizes = "×".join(map(str, data.image_shape))
    with _blamed(
        f"model, data.batch_size={data.batch_size}: the network cannot be trained on {smallest} images of {sizes}, the"
        " smallest batch"
    ):
        logits = classifier.train()(images)
    if logits.shape != wanted:
        raise UserError(f"model: gives {tuple(logits.shape[1:])} for an image, where {data.classes} logits are needed")
    for teacher in classifier.distillation.teachers if classifier.distillation else ():
        with _blamed(f"distill.teachers: one cannot be applied to images of {sizes}"):
            answers = teacher(images)
        if answers.shape != wanted:
            raise UserError(f"distill.teachers: one gives {answers.shape[1]} logits for an image, not {data.classes}")
    if targets is not labels:
        with _blamed("loss: cannot be applied to what augment makes of labels"):
            classifier.loss(logits, targets)


@contextlib.contextmanager
def _blamed(what: str) -> Iterator[None]:
    """Errors of whatever kind, since the part may be the user's, in one line that says what is at fault."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{what}: {flat(error)}") from error


def run(
    settings: Settings,
    folder: Path,
    callbacks: Sequence[pl.Callback] = (),
    introduce: bool = True,
    lock_timeout: float = 0,
) -> dict[str, Any]:
    """Train, evaluate, and leave the run's files in a folder, which belongs to this run alone.

    With `settings.resume`, the run resumes from its last checkpoint there, if there is one. Without `introduce`, the
    table of the network's stages is left out. For `lock_timeout` seconds, another process at work there is waited for.

    Returns what metrics.json holds. Raises a UserError if training diverged, or the run's files cannot be read or
    written; Interrupted, which says how to resume, if a signal asked the run to end. (`check` has made all parts
    before, to refuse what is wrong before there was a folder.)
    """
    parts.quiet_libraries()
    keep_freed_memory()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), cores()))
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32: a GPU would convolve with 10 of its 23 bits otherwise
    pl.seed_everything(settings.seed, verbose=False)
    first = getattr(rank_zero_only, "rank", 0) == 0
    lock = folders.locked(folder, "resume", lock_timeout) if first else contextlib.nullcontext()
    with _ends_in_one_line(folder), lock:
        result = _run(settings, folder, callbacks, introduce)
    loss, train_acc, test_acc = (_rounded(result[tag]) for tag in ("train/loss", "train/acc", "test/acc"))
    log.info("loss %s, train acc %s, test acc %s", loss, train_acc, test_acc)
    log.info("%.1f examples/sec on %s", result["train/examples_per_sec"] or 0.0, result["device"])
    return result


def _run(settings: Settings, folder: Path, callbacks: Sequence[pl.Callback], introduce: bool) -> dict[str, Any]:
    start, next_step = resume.place(settings, folder)
    loggers = parts.loggers_of(settings, folder, next_step)
    board = next((logger for logger in loggers if isinstance(logger, RunLogger)), None)
    callbacks = [*parts.callbacks_of(settings), *callbacks]
    data = parts.data_of(settings, parts.steps_in_block(settings, callbacks))
    classifier = parts.classifier_of(settings, data)
    throughput, dashboard, signals = Throughput(), Dashboard(), EndOnSignal()
    saving = checkpoint.SaveRun(folder, settings.checkpoint.every_seconds, signals)
    shown = [dashboard] if settings.dashboard == "full" else []
    trainer = parts.trainer_of(
        settings,
        logger=loggers or False,
        callbacks=[throughput, Progress(), *shown, *callbacks, signals, saving],
        plugins=[checkpoint.WholeFileIO()],
        default_root_dir=folder,
    )
    if trainer.is_global_zero:
        checkpoint.write_run(folder, settings.plain)
        shape = getattr(data, "image_shape", None)
        rows = stages(copy.deepcopy(classifier.net), shape) if shape else []
        if rows and settings.resume is None and introduce:
            log.info("%s", table(rows))
        place = f" (resumes from {start.name})" if start else " (has no checkpoint yet, starts over)"
        if settings.init_from and settings.resume is None:
            log.info("Begins with the weights of %s", settings.init_from)
        log.info("Run folder: %s%s", folder, place if settings.resume else "")
        if board is not None:
            board.describe(OmegaConf.to_yaml(settings.plain), rows, shape or ())
    else:
        logging.disable()  # one process speaks for all
    with garbage_collector_frozen():
        trainer.fit(classifier, datamodule=data, ckpt_path=start, weights_only=True)
        if signals.received is not None:
            raise Interrupted(signals.received)
        if not settings.test_every_epoch:
            trainer.test(classifier, datamodule=data, verbose=False)
    result = {
        **_result(settings, classifier, trainer, throughput),
        "dashboard_seconds": dashboard.stopwatch.seconds,
        "checkpoint_seconds": saving.stopwatch.seconds,
    }
    if trainer.is_global_zero:
        if board is not None and settings.dashboard == "full":
            board.log_comparison(dict(dotted(settings.plain)), result, trainer.global_step)
        for logger in loggers:
            logger.finalize("success")
        write_json(folder / RESULT, result)
    if line := _learnt_nothing(settings, data, result):
        log.warning("%s", line)
    return result


@contextlib.contextmanager
def _ends_in_one_line(folder: Path) -> Iterator[None]:
    """Whatever ends a run early says in one line why, what is left, and how to resume."""
    last, hook = folder / checkpoint.CHECKPOINTS / checkpoint.LAST, threading.excepthook
    # TensorBoard writes in a thread, whose errors are raised again by whoever writes next.
    threading.excepthook = lambda failed: None if isinstance(failed.exc_value, OSError) else hook(failed)
    try:
        yield
    except Interrupted as interrupt:
        if interrupt.args:
            raise
        raise Interrupted(interrupt.signum, resume.advice(folder)) from None
    except DivergenceError as error:
        left = f"the last good weights are in {last}" if last.exists() else "nothing is saved"
        raise UserError(f"{error}; {left}") from None
    except OSError as error:
        if not folder.is_dir():
            raise UserError(f"{folder}: was removed or moved away while the run wrote to it; start it again") from None
        if error.errno not in DISK_ERRORS:  # a network's, say, or a defect
            raise
        raise UserError(
            f"{error.filename or folder}: cannot be written ({error.strerror}); make room or let it be written;"
            f" {resume.advice(folder)}"
        ) from None
    finally:
        threading.excepthook = hook


def _result(settings: Settings, classifier: Classifier, trainer: pl.Trainer, throughput: Throughput) -> dict[str, Any]:
    """What metrics.json holds: every measure as of the final epoch, None where there was nothing to measure."""
    device = str(trainer.strategy.root_device)
    return {
        **dict.fromkeys(TAGS),
        **classifier.metrics,
        "best_val_acc": classifier.best_val_acc,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "images": classifier.images_trained,
        "seconds": throughput.stopwatch.seconds,
        "seed": settings.seed,
        "device": device if trainer.world_size == 1 else f"{trainer.world_size} × {device.split(':')[0]}",
        "parameters": sum(p.numel() for p in classifier.parameters()),
        "versions": {name: checkpoint.versions()[name] for name in ("python", "torch", "lightning")},
    }


def _learnt_nothing(settings: Settings, data: pl.LightningDataModule, result: dict[str, Any]) -> str | None:
    """What to try, if the accuracy at the end is within noise (three standard errors) of guessing."""
    split = "test" if result["test/acc"] is not None else "val"
    acc = result[f"{split}/acc"]
    if acc is None or not isinstance(data, ImageDataModule):
        return None
    chance, images = 1 / data.classes, len(data.images(split).labels)
    if acc > chance + 3 * math.sqrt(chance * (1 - chance) / images):
        return None
    return (
        f"The network has learnt nothing: {split} acc {acc:.3f} is that of guessing one of {data.classes} classes; try"
        f" another learning rate (optimizer.lr={settings.optimizer.lr}; often a tenth of it) or more epochs"
    )


def _rounded(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"  # – where the user left the evaluation out
