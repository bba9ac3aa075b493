"""`resume=FOLDER`: the run in that folder goes on, with its own configuration in place of what was composed."""

from collections.abc import Iterable
from pathlib import Path

from lenet.config import Settings, validated
from lenet.errors import UserError
from lenet.files import read_json
from lenet.folders import RESULT
from lenet.training.checkpoint import read_run

CHANGEABLE = ("resume", "trainer.max_epochs", "device")
"""What may be set beside the folder."""


def resumed(settings: Settings, overrides: Iterable[str]) -> Settings:
    """The run's own settings, with what may be changed.

    Args:
        settings: as composed; `resume` names the folder.
        overrides: what the command line says.

    Raises:
        UserError: there is no such run, or the command says more than may change.
    """
    folder = Path(str(settings.resume)).expanduser().absolute()
    keys = [str(word).lstrip("+~").partition("=")[0] for word in overrides]
    for key, word in zip(keys, overrides, strict=True):
        if key not in CHANGEABLE and not key.startswith("device."):
            raise UserError(
                f"{word}: a resumed run keeps its configuration, but for trainer.max_epochs and device; leave it out,"
                " or start a new run without resume"
            )
    saved, device = read_run(folder)["settings"], settings.section("device")
    for key in keys:
        section, _, name = key.partition(".")
        if key == "device":
            saved["device"] = device
        elif section == "device":
            saved["device"][name] = device[name]
        elif key == "trainer.max_epochs":
            saved["trainer"]["max_epochs"] = settings.trainer.max_epochs
    return validated(Settings, {**saved, "resume": str(folder)})


def finished(settings: Settings) -> str | None:
    """If the run that is to be resumed is finished, a line that says so."""
    limits, folder = settings.trainer, Path(str(settings.resume))
    try:
        result = read_json(folder / RESULT)
        if limits.max_steps != -1 and result["steps"] >= limits.max_steps:
            return f"{folder}: is finished; it has done trainer.max_steps={limits.max_steps}, and a new run can do more"
        if result["epochs"] >= limits.max_epochs:
            return f"{folder}: is finished; trainer.max_epochs=NUMBER trains on"
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no metrics.json, or a damaged one, which is written anew
    return None
