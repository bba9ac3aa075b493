"""One run: builds the parts from a configuration, fits, tests, and leaves everything in the run's folder."""

from __future__ import annotations

from lenet import lean  # isort: skip  # noqa: F401 - before Lightning is loaded below

import contextlib
import copy
import logging
import platform
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import lightning.pytorch as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lenet import folders, preflight
from lenet.config import Settings, read_settings
from lenet.data.module import ImageDataModule
from lenet.errors import UserError
from lenet.fast.memory import keep_freed_memory, objects_set_aside
from lenet.files import write_json
from lenet.models.lenet import xavier_uniform_
from lenet.models.summary import stages, table
from lenet.monitor.dashboard import Dashboard
from lenet.monitor.hyperparameters import FOREMOST, hyperparameters
from lenet.monitor.progress import Progress
from lenet.monitor.tensorboard import RunLogger
from lenet.monitor.throughput import Throughput
from lenet.training import provenance
from lenet.training.checkpoints import Checkpoints
from lenet.training.endings import told, what_is_left
from lenet.training.module import Classifier
from lenet.training.resume import refuse_another
from lenet.training.saved import FOLDER, Saved, find, refuse_damaged_best
from lenet.training.signals import Interrupted, Interrupts, raise_at_once

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


BATCH_COUNTING_ARGUMENTS = {"fast_dev_run", "limit_train_batches", "val_check_interval"}
"""Arguments of Lightning's Trainer that count what Lightning takes for batches: with them, those are not blocks."""


def check(settings: Settings) -> None:
    """Everything that can refuse a run before it has a folder: the device, the trainer's arguments, the data.

    Raises:
        UserError: names the key or the file that is wrong.
    """
    _quiet_libraries()
    preflight.check(settings)
    preflight.check_device(settings.device, CUDAAccelerator.auto_device_count() or int(MPSAccelerator.is_available()))
    _trainer(settings, logger=False, enable_checkpointing=False)
    build_data(settings).prepare_data()


def train(config: DictConfig) -> float | None:
    """Run the configuration of a Hydra job in the folder that Hydra made for it.

    Returns:
        The best validation accuracy, for sweeps that maximise it; None if no images were held out.

    Raises:
        UserError: the run cannot start, or training diverged.
    """
    settings = read_settings(config)
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    if hydra.mode == RunMode.MULTIRUN:
        check(settings)  # a single run was checked before it got a folder
        if (folder / provenance.FILE).exists():  # of a sweep that was ended in the middle of this job
            settings = settings.model_copy(update={"resume": str(folder)})
    first = hydra.mode != RunMode.MULTIRUN or hydra.job.num == 0
    best: float | None = run(settings, folder, introduce=first)["best_val_acc"]
    return best


def run(
    settings: Settings, folder: Path, callbacks: Sequence[pl.Callback] = (), introduce: bool = True
) -> dict[str, Any]:
    """Train, evaluate, and leave the run's files in `folder`; with these callbacks besides its own.

    Args:
        settings: of the run. With `resume`, the run goes on from the last checkpoint in the folder, if there is one.
        folder: exists, and belongs to this run alone.
        callbacks: more of them.
        introduce: show the network's stages at the start; the later jobs of a sweep leave that out.

    Returns:
        What metrics.json holds.

    Raises:
        UserError: training diverged, or the run's files cannot be read or written.
        Interrupted: a signal asked the run to end; says what is left.
    """
    _quiet_libraries()
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32: a GPU would convolve with 10 of its 23 bits otherwise
    pl.seed_everything(settings.seed, verbose=False)
    with told(folder), folders.alone(folder, "resume") if preflight.is_first() else contextlib.nullcontext():
        result = _run(settings, folder, callbacks, introduce)
    loss, train_acc, test_acc = (_rounded(result[tag]) for tag in ("train/loss", "train/acc", "test/acc"))
    log.info("loss %s, train acc %s, test acc %s", loss, train_acc, test_acc)
    log.info("%.1f examples/sec on %s", result["train/examples_per_sec"] or 0.0, result["device"])
    return result


def _run(settings: Settings, folder: Path, callbacks: Sequence[pl.Callback], introduce: bool) -> dict[str, Any]:
    saved = _saved(settings, folder) if settings.resume is not None else None
    data = build_data(settings)
    if saved is not None:
        data.start = saved.place
    throughput, interrupts, logger = Throughput(), Interrupts(), RunLogger(folder)
    dashboard = [Dashboard(logger, folder, data.classes)] if settings.dashboard == "full" else []
    keeper = Checkpoints(
        folder, settings.plain, settings.checkpoint.every_seconds, interrupts, logger, [throughput, *dashboard], saved
    )
    trainer = _trainer(
        settings,
        gradient_clip_val=None,  # the classifier steps the optimizer, and clips
        gradient_clip_algorithm=None,
        logger=logger,
        callbacks=[throughput, Progress(throughput), *dashboard, keeper, *callbacks],
        plugins=[keeper.plugin],
        default_root_dir=folder,
    )
    if not trainer.is_global_zero:
        logging.disable()  # one process speaks for all
    classifier = build_classifier(settings, trainer.strategy.root_device, interrupts)
    try:
        if trainer.is_global_zero:
            _begin(folder, settings, classifier, logger, introduce, saved)
        with objects_set_aside():
            trainer.fit(classifier, datamodule=data)
            raise_at_once()  # the last checkpoint has all that training gave
            if interrupts.received is not None and trainer.world_size == 1:
                raise Interrupted(interrupts.received, what_is_left(folder))
            if not settings.test_every_epoch:
                trainer.test(classifier, datamodule=data, verbose=False)
        result = _result(settings, classifier, trainer, throughput)
        result["dashboard_seconds"] = sum(each.stopwatch.seconds for each in dashboard)
        result["checkpoint_seconds"] = keeper.stopwatch.seconds
        logger.finish_comparison(result)
        if trainer.is_global_zero:
            write_json(folder / "metrics.json", result)
    finally:
        logger.close()
        raise_at_once()
    return result


def _saved(settings: Settings, folder: Path) -> Saved | None:
    """The checkpoint to go on from; None if the run was ended before it had one, and begins anew.

    Raises:
        UserError: there is none that this run can go on from.
    """
    saved = find(folder)
    then = provenance.read(folder)["versions"]
    for name, version in provenance.versions().items():
        if name in ("torch", "numpy", "lightning") and then.get(name) != version:
            log.warning(
                "The run was begun with %s %s, and goes on with %s: not bit for bit", name, then.get(name), version
            )
    if saved is None:
        return None
    refuse_damaged_best(folder)
    refuse_another(saved.settings, settings.plain, saved.path)
    epochs, steps = saved.place
    if settings.trainer.max_epochs < epochs + (steps > 0):
        begun = " and begun another" if steps > 0 else ""
        raise UserError(
            f"trainer.max_epochs={settings.trainer.max_epochs}: the run has done {epochs} epochs{begun} already; name"
            " more"
        )
    return saved


def build_data(settings: Settings) -> ImageDataModule:
    """The data module of a configuration."""
    counts_batches = BATCH_COUNTING_ARGUMENTS & set(settings.trainer.model_extra or {})
    data: ImageDataModule = instantiate(
        settings.section("data"),
        seed=settings.seed,
        test_every_epoch=settings.test_every_epoch,
        block_steps=1 if counts_batches else settings.trainer.log_every_n_steps,
        _convert_="all",
    )
    return data


def build_classifier(settings: Settings, device: torch.device, interrupts: Interrupts | None = None) -> Classifier:
    """The module of a configuration, to be trained on that device; its weights drawn anew."""
    net: nn.Sequential = instantiate(settings.section("model"), _convert_="all")
    xavier_uniform_(net)
    optimizer = instantiate(settings.section("optimizer"), _convert_="all")
    scheduler = instantiate(settings.section("scheduler"), _convert_="all") if settings.scheduler else None
    clipping = {name: value for name, value in settings.section("trainer").items() if name.startswith("gradient_clip_")}
    # What kernels are made for; elsewhere there is no need to compile them.
    fuse = settings.fuse and settings.precision == "float32" and device.type == "cpu"
    return Classifier(net, optimizer, scheduler, fuse, **clipping, interrupts=interrupts)


def _trainer(settings: Settings, **arguments: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "enable_progress_bar": False,  # lenet.monitor.progress draws its own
        "enable_model_summary": False,  # lenet.models.summary says more
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,  # lenet.data.module gives each device its share
        "deterministic": True if settings.deterministic else None,
        "precision": {"float32": "32-true", "bf16": "bf16-mixed"}[settings.precision],
    }
    device = settings.section("device")
    try:
        return pl.Trainer(**(defaults | device | settings.section("trainer") | arguments))
    except Exception as error:  # of whatever kind: it looks at its arguments in many places
        section, values = "trainer", settings.trainer.model_extra or {}
        if not values or "devices" in str(error):
            section, values = "device", device
        given = [f"{section}.{key}={value}" for key, value in values.items()]
        raise UserError(f"{', '.join(given)}: Lightning's Trainer says: {' '.join(str(error).split())}") from error


def _begin(
    folder: Path,
    settings: Settings,
    classifier: Classifier,
    logger: RunLogger,
    introduce: bool,
    saved: Saved | None,
) -> None:
    """Keep what the run is made from, put the curves to where they were, and say what is trained and where."""
    provenance.write(folder, settings.plain)
    (folder / FOLDER).mkdir(exist_ok=True)
    if saved is not None:
        with saved.looked_at():
            goes_on = logger.resume(saved.progress["events"], saved.progress["global_step"] + 1)
    else:
        goes_on = logger.resume(None, 0)
    # A copy, so that looking at the network leaves no trace in it (in a normalisation's statistics, say).
    net = copy.deepcopy(classifier.net).eval()
    assert isinstance(net, nn.Sequential)
    rows = stages(net)
    if settings.resume is None:
        if introduce:
            log.info("%s", table(rows))
        log.info("Run folder: %s", folder)
    elif saved is not None:
        log.info("Run folder: %s (goes on after step %d)", folder, saved.progress["global_step"])
    else:
        log.info("Run folder: %s (has no checkpoint yet, and begins anew)", folder)
    if not goes_on:
        logger.describe(OmegaConf.to_yaml(settings.plain), rows)
        if settings.dashboard == "full":
            logger.begin_comparison(hyperparameters(settings), FOREMOST)


def _result(
    settings: Settings,
    classifier: Classifier,
    trainer: pl.Trainer,
    throughput: Throughput,
) -> dict[str, Any]:
    """What metrics.json holds: every tag as of the final epoch, None where there was nothing to measure."""
    device = str(trainer.strategy.root_device)
    return {
        **{tag: classifier.metrics.get(tag) for tag in TAGS},
        "best_val_acc": classifier.best_val_acc,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "images": throughput.images,
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


def _quiet_libraries() -> None:
    """Keep out of the output what Lightning says about itself, and advice that does not apply here."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for advice in (
        "does not have many workers",  # the images are in memory: workers would only slow things down
        "is smaller than the logging interval",  # log points include each epoch's end
        "LeafSpec.* is deprecated",  # Lightning's affair
        "It is recommended to use .*sync_dist=True",  # lenet.training.module sums over the devices itself
        "Using `DistributedSampler` with the dataloaders",  # lenet.data.module shares without repeating examples
        "Total length of `list` across ranks is zero",  # data.val_size=0: nothing to validate on is what was asked for
        "GPU available but not used",  # the user said device=cpu
        "Checkpoint directory .* exists and is not empty",  # hydra.run.dir is checked before
        "You're resuming from a checkpoint that ended before the epoch ended",  # lenet.data.module goes on where it was
        "Detected call of `lr_scheduler.step\\(\\)` before",  # the steps were taken before the run was resumed
    ):
        warnings.filterwarnings("ignore", f".*{advice}")
