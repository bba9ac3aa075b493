"""The parts of a run, made from its settings: data, module, trainer, callbacks, loggers."""

import logging
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, Timer
from lightning.pytorch.plugins.environments import LightningEnvironment  # type: ignore[attr-defined]

from lenet.classes import arguments_of, build, completed
from lenet.config import Settings
from lenet.data.augment import Augmentation
from lenet.errors import UserError, did_you_mean, flat
from lenet.processes import cores, launched
from lenet.training import checkpoint
from lenet.training.averaging import Averaging
from lenet.training.distillation import Distillation
from lenet.training.module import Classifier

log = logging.getLogger(__name__)

BATCHWISE_ARGUMENTS = {
    *("accumulate_grad_batches", "detect_anomaly", "fast_dev_run", "limit_train_batches", "overfit_batches"),
    *("gradient_clip_algorithm", "gradient_clip_val", "profiler", "val_check_interval"),
}
"""Arguments of Lightning's Trainer about single batches."""

BATCHWISE_HOOKS = [
    name for name in vars(pl.Callback) if name.startswith(("on_train_batch_", "on_before_", "on_after_"))
]
"""What a callback implements that looks at single batches."""


def data_of(settings: Settings, block_steps: int = 1) -> pl.LightningDataModule:
    """The data module, which gives so many optimizer steps at a time."""
    data: pl.LightningDataModule = build(
        "data",
        settings.section("data"),
        # Who overfits some batches wants the same ones in each epoch.
        seed=None if "overfit_batches" in (settings.trainer.model_extra or {}) else settings.seed,
        test_every_epoch=settings.test_every_epoch,
        block_steps=block_steps,
    )
    return data


def classifier_of(settings: Settings, data: pl.LightningDataModule) -> Classifier:
    """The module for a data module, its weights drawn anew."""
    offered = {"in_channels": getattr(data, "image_shape", (None,))[0], "classes": getattr(data, "classes", None)}
    known = {name: value for name, value in offered.items() if value is not None}
    classifier = Classifier(
        completed("model", settings.section("model"), **known),
        settings.section("optimizer"),
        settings.section("scheduler") or None,
        settings.section("loss"),
        init=settings.init,
        fuse=settings.fuse,
        blocks=getattr(data, "block_steps", 1) > 1,
        seed=settings.seed,
        augment=_augmentation_of(settings, known),
        distillation=_distillation_of(settings),
        decay=settings.decay,
    )
    if settings.init_from is not None and settings.resume is None:
        _take_weights(classifier, settings.init_from, settings.init_from_strict)
    return classifier


def _augmentation_of(settings: Settings, known: dict[str, Any]) -> Augmentation | None:
    section = settings.section("augment")
    return build("augment", section, **known) if section else None


def _distillation_of(settings: Settings) -> Distillation | None:
    """From the runs that are the teachers, if there are any."""
    section = settings.distill
    teachers = []
    for path in [section.teachers] if isinstance(section.teachers, str) else section.teachers or ():
        try:
            teachers.append(checkpoint.classifier_of(checkpoint.read(checkpoint.file_of(Path(path))), path))
        except UserError as error:
            raise UserError(f"distill.teachers={error}") from None
    return Distillation(teachers, section.temperature, section.weight) if teachers else None


def _take_weights(classifier: Classifier, source: str, strict: bool) -> None:
    """Give the network the weights of another run; if not strict, those of the same name and shape."""
    try:
        path = checkpoint.file_of(Path(source).expanduser())
        given = checkpoint.read(path)["state_dict"]
    except UserError as error:
        raise UserError(f"init_from={error}") from None
    own = classifier.state_dict()
    fitting = {name: value for name, value in given.items() if name in own and own[name].shape == value.shape}
    odd = sorted((given.keys() | own.keys()) - fitting.keys())
    if strict and odd:
        raise UserError(
            f"init_from={source}: {', '.join(odd)} differ from this network's; init_from_strict=false takes the weights"
            " that fit"
        )
    if not fitting:
        raise UserError(f"init_from={source}: none of its weights fits this network")
    if odd:
        log.info("Of init_from=%s, these do not fit and are left out: %s", source, ", ".join(odd))
    classifier.load_state_dict(fitting, strict=False)


def trainer_of(settings: Settings, **arguments: Any) -> pl.Trainer:
    """Lightning's Trainer with the configuration's arguments, and others; a UserError if it refuses one."""
    accepted = arguments_of(pl.Trainer) or frozenset()
    for name in settings.trainer.model_extra or {}:
        if name not in accepted:
            raise UserError(f"trainer.{name}: Lightning's Trainer has no such argument{did_you_mean(name, accepted)}")
    defaults: dict[str, Any] = {
        "enable_progress_bar": False,  # lenet.monitor.progress draws its own
        "enable_model_summary": False,  # lenet.models.summary says more
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,  # lenet.data gives each device its share
        "deterministic": True if settings.deterministic else None,
        "precision": {"float32": "32-true", "bf16": "bf16-mixed"}[settings.precision],
    }
    device, given = settings.section("device"), settings.section("trainer")
    most = max(2, cores())
    if device["devices"] > most and not torch.cuda.is_available():  # Lightning would start so many processes
        raise UserError(f"device.devices={device['devices']}: this machine has no GPU; use at most {most}")
    if launched() is None and "SLURM_NTASKS" in os.environ:  # one process, which Lightning would not believe
        arguments["plugins"] = [*arguments.get("plugins", ()), LightningEnvironment()]
    try:
        return pl.Trainer(**(defaults | device | given | arguments))
    except Exception as error:  # of whatever kind: it looks at its arguments in many places
        section, values = "trainer", settings.trainer.model_extra or {}
        if not values or "devices" in str(error):
            section, values = "device", device
        named = ", ".join(f"{section}.{key}={value}" for key, value in values.items())
        remedy = "; device=cpu works everywhere" if section == "device" else ""
        raise UserError(f"{named}: Lightning's Trainer says: {flat(error)}{remedy}") from error


def callbacks_of(settings: Settings) -> list[pl.Callback]:
    """Those that the configuration names, with what averages the weights."""
    averaging = [build("average", settings.section("average"))] if settings.average else []
    return averaging + [build("callbacks", section) for section in settings.section("callbacks").values()]


def loggers_of(settings: Settings, folder: Path, next_step: int | None) -> list[Any]:
    """Those that the configuration names, writing into a run's folder; of a resumed run, from its next step on."""
    sections = settings.section("logger").values()
    return [build("logger", section, save_dir=str(folder), next_step=next_step) for section in sections]


def steps_in_block(settings: Settings, callbacks: Sequence[pl.Callback]) -> int:
    """How many optimizer steps are taken at a time: one, if an argument or a callback is about single batches."""
    reasons = [f"trainer.{name}" for name in BATCHWISE_ARGUMENTS & set(settings.trainer.model_extra or {})]
    sections = settings.section("callbacks").items()
    reasons += [f"callbacks.{key}.every_n_train_steps" for key, section in sections if "every_n_train_steps" in section]
    for callback in callbacks:
        listens = any(getattr(type(callback), name) is not getattr(pl.Callback, name) for name in BATCHWISE_HOOKS)
        if listens and not isinstance(
            callback, Averaging | LearningRateMonitor | ModelCheckpoint | Timer
        ):  # which count steps
            reasons.append(type(callback).__name__)
    averaged = min((each.every_n_steps for each in callbacks if isinstance(each, Averaging)), default=math.inf)
    if averaged == 1:
        reasons.append("average.every_n_steps=1")
    if reasons and settings.fuse:
        log.info("%s: every batch goes through Lightning's own loop, which is slower", ", ".join(sorted(reasons)))
    return 1 if reasons else max(2, int(min(settings.trainer.log_every_n_steps, averaged)))


def quiet_libraries() -> None:
    """Keep out of the output what Lightning says about itself, and advice that does not apply here."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).handlers.clear()  # what is left to say goes where the run's own lines go
        logging.getLogger(name).propagate = True
    for name in ("callbacks.model_summary", "utilities.model_summary", "profilers.profiler"):
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.INFO)
        logging.getLogger(f"lightning.pytorch.{name}").addFilter(_is_table)
    for advice in (
        "does not have many workers",  # the images are in memory: workers would only slow things down
        "is smaller than the logging interval",  # log points include each epoch's end
        "LeafSpec.* is deprecated",  # Lightning's affair
        "It is recommended to use .*sync_dist=True",  # the module sums over the devices itself
        "Using `DistributedSampler` with the dataloaders",  # lenet.data shares without repeating examples
        "Total length of `list` across ranks is zero",  # data.val_size=0: nothing to validate on is what was asked for
        "You requested to overfit but enabled",  # the batches come in the same order in each epoch
        "GPU available but not used",  # the user said device=cpu
        "Checkpoint directory .* exists and is not empty",  # of a run that is resumed
        "Detected call of `lr_scheduler.step\\(\\)` before",  # the steps were taken before the run was resumed
    ):
        warnings.filterwarnings("ignore", f".*{advice}")


def _is_table(record: logging.LogRecord) -> bool:
    """What a profiler or a model summary says, which the user has asked for; and warnings."""
    return record.levelno >= logging.WARNING or "\n" in record.getMessage()
