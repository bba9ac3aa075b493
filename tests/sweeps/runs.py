"""What runs leave, as the leaderboard reads it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def add_run(folder: Path, overrides: str, metrics: Mapping[str, Any] | None) -> None:
    """Write what a run leaves; without metrics, it is not done."""
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    OmegaConf.save(overrides.split(), folder / ".hydra" / "overrides.yaml")
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(dict(metrics)))
