"""`resume=FOLDER`: the run in that folder goes on, with its own configuration in place of what else was composed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from lenet import folders
from lenet.config import Settings, validated
from lenet.errors import UserError
from lenet.files import read_json
from lenet.sweeps.sweep import RESULT, flat
from lenet.training import provenance

CHANGEABLE = ("resume", "trainer.max_epochs", "device", "hydra.mode")
"""What may be said beside the folder."""


def take_over(config: DictConfig, is_child: bool) -> Settings:
    """Put the saved configuration into the composed one, and let Hydra use the run's folder.

    Args:
        config: as composed; is changed.
        is_child: this process was started by the first one, which has told it the folder.

    Raises:
        UserError: there is no such run, its folder holds what no run makes, or the command says more than may change.
    """
    folder = Path(str(config.resume)).expanduser().absolute()
    task = [str(word) for word in config.hydra.overrides.task]
    for word in task + ([] if is_child else [str(word) for word in config.hydra.overrides.hydra]):
        key = word.lstrip("+").partition("=")[0]
        if word.startswith("~") or (key not in CHANGEABLE and not key.startswith("device.")):
            raise UserError(
                f"{word}: a resumed run keeps its configuration, but for trainer.max_epochs and device; leave it out,"
                " or start a new run without resume"
            )
    saved = provenance.read(folder)["settings"]
    folders.refuse_foreign(folder)
    folders.refuse_shared(folder)
    _refuse_interpolations(folder, saved)
    validated(Settings, {**saved, "resume": None})
    _change(saved, config, task)
    settings = validated(Settings, {**saved, "resume": str(folder)})
    _refuse_missing_data(saved["data"])
    with read_write(config), open_dict(config):
        for key in [str(key) for key in config if key not in ("hydra", "tune")]:
            del config[key]
        config.update({**saved, "resume": str(folder)})
        config.hydra.run.dir = str(folder)
        config.hydra.output_subdir = None  # what the first start wrote there, stays
    return settings


def finished(folder: Path, settings: Settings) -> str | None:
    """If nothing is left to do, what would have to be said for more."""
    limits = settings.trainer
    try:
        result = read_json(folder / RESULT)
        if limits.max_steps != -1 and result["steps"] >= limits.max_steps:
            return f"it has done trainer.max_steps={limits.max_steps}, and a new run can do more"
        return "trainer.max_epochs=NUMBER trains on" if result["epochs"] >= limits.max_epochs else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def refuse_another(saved: dict[str, Any], settings: dict[str, Any], where: Path) -> None:
    """Refuse a checkpoint of another run.

    Raises:
        UserError: names the first difference.
    """
    there, here = (flat({key: value for key, value in each.items() if key != "device"}) for each in (saved, settings))
    for key in sorted(here.keys() | there.keys()):
        if key != "trainer.max_epochs" and here.get(key) != there.get(key):
            raise UserError(
                f"{where}: was made with {key}={there.get(key)}, and {provenance.FILE} says {here.get(key)}: it belongs"
                " to another run"
            )


def _change(saved: dict[str, Any], config: DictConfig, task: list[str]) -> None:
    keys = [word.lstrip("+").partition("=")[0] for word in task]
    device = OmegaConf.to_container(config.device, resolve=True)
    assert isinstance(device, dict)
    if "device" in keys:
        saved["device"] = device
    for key in keys:
        if key == "trainer.max_epochs":
            saved["trainer"]["max_epochs"] = config.trainer.max_epochs
        elif key.startswith("device."):
            name = key.removeprefix("device.")
            saved["device"][name] = device[name]


def _refuse_interpolations(folder: Path, saved: dict[str, Any]) -> None:
    # What a run keeps is resolved: an interpolation was put in by somebody else.
    for key, value in flat(saved).items():
        if "${" in str(value):
            raise UserError(f"{folder / provenance.FILE}: {key}={value}: is not a value; the file is not a run's own")


def _refuse_missing_data(data: dict[str, Any]) -> None:
    """A folder that came from elsewhere is no reason to create others."""
    root = data.get("root")
    if root is not None and not (Path(root) / "FashionMNIST" / "raw").is_dir():
        raise UserError(
            f"data.root={root}: the run's data is not there; put it there, with scripts/get_data.py --root, and the run"
            " goes on"
        )
