"""One run: builds the parts from a configuration, fits, tests, and leaves everything in the run's folder."""

from __future__ import annotations

import contextlib
import copy
import logging
import platform
import shlex
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import lightning
import lightning.pytorch as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import LearningRateMonitor, Timer
from omegaconf import DictConfig, OmegaConf

from lenet import folders
from lenet.classes import accepted_arguments, arguments_of, build
from lenet.config import Settings, read_settings
from lenet.data import ImageDataModule
from lenet.errors import DivergenceError, UserError, did_you_mean
from lenet.fast.memory import keep_freed_memory, objects_set_aside
from lenet.files import read_json, write_json
from lenet.models import stages, table
from lenet.monitor.dashboard import Dashboard
from lenet.monitor.hyperparameters import hyperparameters
from lenet.monitor.progress import Progress
from lenet.monitor.tensorboard import RunLogger
from lenet.monitor.throughput import Throughput
from lenet.signals import Interrupted
from lenet.training.checkpoint import (
    CHECKPOINTS,
    LAST,
    RESULT,
    RUN_FILE,
    SaveRun,
    WholeFileIO,
    find,
    read,
    warn_of_other_versions,
    write_run,
)
from lenet.training.module import Classifier
from lenet.training.resume import resumed
from lenet.training.signals import EndOnSignal

log = logging.getLogger(__name__)

TAGS = (
    "train/loss",
    "train/acc",
    "val/loss",
    "val/acc",
    "test/loss",
    "test/acc",
    "lr",
    "train/examples_per_sec",
)
"""What a run measures: in metrics.json, and as scalars in TensorBoard."""

BATCHWISE_ARGUMENTS = {
    "accumulate_grad_batches",
    "detect_anomaly",
    "fast_dev_run",
    "limit_train_batches",
    "overfit_batches",
    "profiler",
    "val_check_interval",
}
"""Arguments of Lightning's Trainer about single batches."""

CLIPPING = ("gradient_clip_val", "gradient_clip_algorithm")

BATCHWISE_HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)
"""What a callback implements that looks at single batches."""

PATIENCE_SECONDS = 30
"""A job whose sweep was killed finishes its epoch and saves; who resumes it waits so long."""


def train(config: DictConfig) -> float | None:
    """Run the configuration of a Hydra job in the folder that Hydra made for it.

    In a sweep, a job that is done is not done again, and one that was cut off goes on.

    Returns:
        The best validation accuracy, for sweeps that maximise it; None if no images were held out.

    Raises:
        UserError: the run cannot start, or training diverged.
    """
    hydra = HydraConfig.get()
    settings = read_settings(config, hydra.overrides.task)
    folder, in_sweep = Path(hydra.runtime.output_dir), hydra.mode == RunMode.MULTIRUN
    if in_sweep and (folder / RESULT).exists():
        return cast("float | None", read_json(folder / RESULT)["best_val_acc"])
    if in_sweep:
        check(settings)  # a single run was checked before it got a folder
    if in_sweep and (folder / RUN_FILE).exists():
        settings = settings.model_copy(update={"resume": str(folder)})
    elif settings.resume is not None:
        settings = resumed(settings, hydra.overrides.task)
        folder = Path(str(settings.resume))
    result = run(settings, folder, introduce=not in_sweep or hydra.job.num == 0)
    return cast("float | None", result["best_val_acc"])


def check(settings: Settings) -> None:
    """Everything that can refuse a run before it has a folder: each part is made once, and the data is obtained.

    Raises:
        UserError: names the key or the file that is wrong.
    """
    _quiet_libraries(settings)
    accepted = arguments_of(pl.Trainer) or frozenset()
    for name in settings.trainer.model_extra or {}:
        if name not in accepted:
            raise UserError(f"trainer.{name}: Lightning's Trainer has no such argument{did_you_mean(name, accepted)}")
    _trainer(settings, logger=False, enable_checkpointing=False)
    callbacks_of(settings)
    loggers_of(settings, Path(), None)
    data = build_data(settings)
    data.prepare_data()
    data.setup("fit")
    classifier = build_classifier(settings, data)
    optimizer = classifier.optimizer_factory(classifier.parameters())
    if classifier.scheduler_factory is not None:
        classifier.make_schedule(optimizer, total_steps=10)
    if isinstance(data, ImageDataModule):
        _try_out(settings, classifier, data)


def _try_out(settings: Settings, classifier: Classifier, data: ImageDataModule) -> None:
    """Apply the network to the smallest batch that one device will get."""
    images = data.images("train").images
    smallest = max(1, (len(images) % data.batch_size or data.batch_size) // settings.device.total)
    try:
        logits = classifier.train()(images[:smallest, None])
    except Exception as error:  # of whatever kind: the network may be the user's
        raise UserError(
            f"model, data.batch_size={data.batch_size}: the network cannot be trained on {smallest} images of"
            f" {'×'.join(map(str, data.image_shape))}, the smallest batch: {_flat(error)}"
        ) from error
    if logits.shape != (smallest, data.classes):
        raise UserError(f"model: gives {tuple(logits.shape[1:])} for an image, where {data.classes} logits are needed")


def run(
    settings: Settings, folder: Path, callbacks: Sequence[pl.Callback] = (), introduce: bool = True
) -> dict[str, Any]:
    """Train, evaluate, and leave the run's files in a folder.

    Args:
        settings: of the run. With `resume`, the run goes on from its last checkpoint in the folder, if there is one.
        folder: exists, and belongs to this run alone.
        callbacks: more of them.
        introduce: show the network's stages at the start; the later jobs of a sweep leave that out.

    Returns:
        What metrics.json holds.

    Raises:
        UserError: training diverged, or the run's files cannot be read or written.
        Interrupted: a signal asked the run to end; says how it goes on.
    """
    _quiet_libraries(settings)
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32: a GPU would convolve with 10 of its 23 bits otherwise
    pl.seed_everything(settings.seed, verbose=False)
    first = getattr(rank_zero_only, "rank", 0) == 0
    lock = folders.alone(folder, "resume", PATIENCE_SECONDS) if first else contextlib.nullcontext()
    with _ends_in_one_line(folder), lock:
        result = _run(settings, folder, callbacks, introduce)
    loss, train_acc, test_acc = (_rounded(result[tag]) for tag in ("train/loss", "train/acc", "test/acc"))
    log.info("loss %s, train acc %s, test acc %s", loss, train_acc, test_acc)
    log.info("%.1f examples/sec on %s", result["train/examples_per_sec"] or 0.0, result["device"])
    return result


def _run(settings: Settings, folder: Path, callbacks: Sequence[pl.Callback], introduce: bool) -> dict[str, Any]:
    start = _checkpoint_to_resume(settings, folder) if settings.resume is not None else None
    loggers = loggers_of(settings, folder, None if start is None else read(start)["global_step"] + 1)
    board = next((logger for logger in loggers if isinstance(logger, RunLogger)), None)
    callbacks = [*callbacks_of(settings), *callbacks]
    data = build_data(settings, _steps_in_block(settings, callbacks))
    classifier = build_classifier(settings, data)
    throughput, dashboard, signals = Throughput(), Dashboard(), EndOnSignal()
    saving = SaveRun(folder, settings.checkpoint.every_seconds, signals)
    shown = [dashboard] if settings.dashboard == "full" else []
    # With blocks, the classifier steps the optimizer, and clips.
    clipping = {} if classifier.automatic_optimization else dict.fromkeys(CLIPPING)
    trainer = _trainer(
        settings,
        **clipping,
        logger=loggers or False,
        callbacks=[throughput, Progress(), *shown, *callbacks, signals, saving],
        plugins=[WholeFileIO()],
        default_root_dir=folder,
    )
    if trainer.is_global_zero:
        write_run(folder, settings.plain)
        shape = getattr(data, "image_shape", (1, 28, 28))
        rows = stages(copy.deepcopy(classifier.net), shape)
        if settings.resume is None and introduce:
            log.info("%s", table(rows))
        begins = "" if settings.resume is None else " (has no checkpoint yet, and begins anew)"
        log.info("Run folder: %s%s", folder, begins if start is None else f" (goes on from {start.name})")
        if board is not None:
            board.describe(OmegaConf.to_yaml(settings.plain), rows, shape)
    else:
        logging.disable()  # one process speaks for all
    with objects_set_aside():
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
            board.log_comparison(hyperparameters(settings.plain), result, trainer.global_step)
        for logger in loggers:
            logger.finalize("success")
        write_json(folder / RESULT, result)
    return result


def build_data(settings: Settings, block_steps: int = 1) -> pl.LightningDataModule:
    """The data module of a configuration, which gives so many optimizer steps at a time."""
    data: pl.LightningDataModule = build(
        "data",
        settings.section("data"),
        # Who overfits some batches wants the same ones in each epoch.
        seed=None if "overfit_batches" in (settings.trainer.model_extra or {}) else settings.seed,
        test_every_epoch=settings.test_every_epoch,
        block_steps=block_steps,
    )
    return data


def build_classifier(settings: Settings, data: pl.LightningDataModule) -> Classifier:
    """The module of a configuration for a data module, its weights drawn anew."""
    model = settings.section("model")
    accepted = accepted_arguments("model", model["_target_"]) or frozenset()
    shape, classes = getattr(data, "image_shape", None), getattr(data, "classes", None)
    if shape is not None and "in_channels" in accepted:
        model.setdefault("in_channels", shape[0])
    if classes is not None and "classes" in accepted:
        model.setdefault("classes", classes)
    clipping = {name: value for name, value in settings.section("trainer").items() if name in CLIPPING}
    return Classifier(
        model,
        settings.section("optimizer"),
        settings.section("scheduler") or None,
        settings.section("loss"),
        init=settings.init,
        fuse=settings.fuse and settings.precision == "float32",
        blocks=getattr(data, "block_steps", 1) > 1,
        seed=settings.seed,
        **clipping,
    )


def resume_command(folder: Path) -> str:
    """The command that resumes the run in a folder, for a shell."""
    return f"python train.py {shlex.quote(f'resume={folder}')}"


@contextlib.contextmanager
def _ends_in_one_line(folder: Path) -> Iterator[None]:
    """Whatever ends a run early says in one line why, what is left, and how it goes on."""
    has_checkpoint = (folder / CHECKPOINTS / LAST).exists
    try:
        yield
    except Interrupted as interrupt:
        if interrupt.args:
            raise
        saved = any((folder / CHECKPOINTS).glob("*.ckpt"))
        from_where = "goes on from the last checkpoint" if saved else "begins anew: no checkpoint was written"
        raise Interrupted(interrupt.signum, f"{resume_command(folder)} {from_where}") from None
    except DivergenceError as error:
        left = f"the last good weights are in {folder / CHECKPOINTS / LAST}" if has_checkpoint() else "nothing is saved"
        raise UserError(f"{error}; {left}") from None
    except OSError as error:
        if not folder.is_dir():
            raise UserError(f"{folder}: was removed or moved away while the run wrote to it; start it anew") from None
        raise UserError(
            f"{error.filename or folder}: cannot be written ({error.strerror or error}); make room or let it be"
            f" written, and {resume_command(folder)} goes on"
        ) from None


def _checkpoint_to_resume(settings: Settings, folder: Path) -> Path | None:
    """None if the run was ended before it had a checkpoint, and begins anew."""
    warn_of_other_versions(folder)
    path = find(folder)
    if path is not None and read(path)["epoch"] + 1 > settings.trainer.max_epochs:
        raise UserError(
            f"trainer.max_epochs={settings.trainer.max_epochs}: the run has done {read(path)['epoch'] + 1} epochs"
            " already; name more"
        )
    return path


def _trainer(settings: Settings, **arguments: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "enable_progress_bar": False,  # lenet.monitor.progress draws its own
        "enable_model_summary": False,  # lenet.models.summary says more
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,  # lenet.data gives each device its share
        "deterministic": True if settings.deterministic else None,
        "precision": {"float32": "32-true", "bf16": "bf16-mixed"}[settings.precision],
    }
    device, given = settings.section("device"), settings.section("trainer")
    try:
        return pl.Trainer(**(defaults | device | given | arguments))
    except Exception as error:  # of whatever kind: it looks at its arguments in many places
        section, values = "trainer", settings.trainer.model_extra or {}
        if not values or "devices" in str(error):
            section, values = "device", device
        named = [f"{section}.{key}={value}" for key, value in values.items()]
        raise UserError(f"{', '.join(named)}: Lightning's Trainer says: {_flat(error)}") from error


def callbacks_of(settings: Settings) -> list[pl.Callback]:
    """Those that the configuration names."""
    return [build("callbacks", section) for section in settings.section("callbacks").values()]


def loggers_of(settings: Settings, folder: Path, next_step: int | None) -> list[Any]:
    """Those that the configuration names, writing into a run's folder; of a resumed run, from its next step on."""
    sections = settings.section("logger").values()
    return [build("logger", section, save_dir=str(folder), next_step=next_step) for section in sections]


def _steps_in_block(settings: Settings, callbacks: Sequence[pl.Callback]) -> int:
    """How many optimizer steps are taken at a time: one, if an argument or a callback is about single batches."""
    reasons = [f"trainer.{name}" for name in BATCHWISE_ARGUMENTS & set(settings.trainer.model_extra or {})]
    for callback in callbacks:
        hooks = [name for name in BATCHWISE_HOOKS if getattr(type(callback), name) is not getattr(pl.Callback, name)]
        if hooks and not isinstance(callback, LearningRateMonitor | Timer):  # which count steps, not batches
            reasons.append(type(callback).__name__)
    if reasons and settings.fuse:
        log.info("%s: every batch goes through Lightning's own loop, which is slower", ", ".join(sorted(reasons)))
    return 1 if reasons else max(2, settings.trainer.log_every_n_steps)


def _result(settings: Settings, classifier: Classifier, trainer: pl.Trainer, throughput: Throughput) -> dict[str, Any]:
    """What metrics.json holds: every measure as of the final epoch, None where there was nothing to measure."""
    device = str(trainer.strategy.root_device)
    return {
        **{tag: classifier.metrics.get(tag) for tag in TAGS},
        "best_val_acc": classifier.best_val_acc,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "images": classifier.images_trained,
        "seconds": throughput.stopwatch.seconds,
        "seed": settings.seed,
        "device": device if trainer.world_size == 1 else f"{trainer.world_size} × {device.split(':')[0]}",
        "parameters": sum(p.numel() for p in classifier.parameters()),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "lightning": lightning.__version__,
        },
    }


def _rounded(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"  # – where the user left the evaluation out


def _flat(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _quiet_libraries(settings: Settings) -> None:
    """Keep out of the output what Lightning says about itself, and advice that does not apply here."""
    asked = {"profiler", "enable_model_summary"} & set(settings.trainer.model_extra or {}) or settings.callbacks
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.INFO if asked else logging.WARNING)
    for advice in (
        "does not have many workers",  # the images are in memory: workers would only slow things down
        "is smaller than the logging interval",  # log points include each epoch's end
        "LeafSpec.* is deprecated",  # Lightning's affair
        "It is recommended to use .*sync_dist=True",  # the module sums over the devices itself
        "Using `DistributedSampler` with the dataloaders",  # lenet.data shares without repeating examples
        "Total length of `list` across ranks is zero",  # data.val_size=0: nothing to validate on is what was asked for
        "GPU available but not used",  # the user said device=cpu
        "Checkpoint directory .* exists and is not empty",  # of a run that is resumed
        "Detected call of `lr_scheduler.step\\(\\)` before",  # the steps were taken before the run was resumed
    ):
        warnings.filterwarnings("ignore", f".*{advice}")
