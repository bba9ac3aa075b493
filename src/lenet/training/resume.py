"""`resume=FOLDER`: the run in that folder continues, with its own configuration in place of what was composed."""

from collections.abc import Iterable
from pathlib import Path

from lenet.config import Settings, as_word, dotted, validated
from lenet.errors import UserError
from lenet.files import read_json
from lenet.folders import RESULT
from lenet.training import checkpoint

CHANGEABLE = ("resume", "trainer.max_epochs", "device")
"""What may be set beside the folder."""


def command(folder: Path) -> str:
    """The command that resumes the run in a folder, for a shell."""
    return f"python train.py {as_word('resume', folder)}"


def advice(folder: Path) -> str:
    """How a run that was ended continues."""
    if not (folder / checkpoint.RUN_FILE).exists():
        return "start it again: there is nothing to resume yet"
    saved = any((folder / checkpoint.CHECKPOINTS).glob("*.ckpt"))
    how = "to resume from the last checkpoint" if saved else "no checkpoint was written; to start over"
    return f"{how}: {command(folder)}"  # at the end, where it is easily copied


def resumed(settings: Settings, overrides: Iterable[str]) -> Settings:
    """The settings of the run that `settings.resume` names, with what the overrides may change.

    Overrides that only repeat the run's own settings are allowed. Raises a UserError if there is no such run, or the
    overrides say more than may change.
    """
    folder = Path(str(settings.resume)).absolute()
    if not (folder / checkpoint.RUN_FILE).exists():
        raise UserError(
            f"resume={folder}: holds no run; name the folder of one, such as outputs/DATE/TIME, not a file in it"
        )
    saved, device = checkpoint.read_run(folder)["settings"], settings.section("device")
    # With defaults: a run of an older version lacks newer settings.
    own = validated(Settings, {**saved, "resume": None}), settings
    then, now = (dict(dotted(each.model_dump(by_alias=True, exclude={"resume", "launcher"}))) for each in own)
    leaves = [key for key, value in (then | now).items() if not isinstance(value, dict)]
    differ = {key for key in leaves if then.get(key) != now.get(key)} - {"sweep.resume"}
    is_the_same = all(key in CHANGEABLE or key.startswith("device") for key in differ)
    for word in map(str, overrides):
        key = word.lstrip("+~").partition("=")[0]
        section, _, name = key.partition(".")
        if key not in CHANGEABLE and section != "device" and not is_the_same:
            raise UserError(
                f"{word}: a resumed run keeps its configuration, but for trainer.max_epochs and device; leave it out,"
                f" or start a new run from its weights: init_from={folder}"
            )
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
            return f"{folder}: has done its {result['epochs']} epochs; a higher trainer.max_epochs trains on"
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no metrics.json, or a damaged one, which is written anew
    return None


def place(settings: Settings, folder: Path) -> tuple[Path | None, int | None]:
    """The checkpoint to resume from and the next optimizer step; (None, 0) before the first one, a new run has neither.

    Raises a UserError if no checkpoint can be read, or the run has done all its epochs.
    """
    if settings.resume is None:
        return None, None
    checkpoint.warn_of_other_versions(folder)
    path = checkpoint.find(folder)
    if path is None:
        return None, 0
    content, limit = checkpoint.read(path), settings.trainer.max_epochs
    if (done := content["epoch"] + 1) > limit:
        raise UserError(f"trainer.max_epochs={limit}: the run has done {done} epochs already; name more")
    return path, content["global_step"] + 1
