"""A run's TensorBoard log: one event file, in the run's own folder."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from lenet.layers import as_builtin


class RunLogger(TensorBoardLogger):
    """Writes into `folder` itself. Lightning's logger would begin a second event file when fitting ends and testing
    begins, and leave an empty hparams.yaml; this one stays open until `close`.
    """

    def __init__(self, folder: Path) -> None:
        # Empty name and version: no folders below this one. An event reaches the disk within five seconds.
        super().__init__(folder, name="", version="", default_hp_metric=False, flush_secs=5)

    def describe(self, config: str, net: nn.Module) -> None:
        """Log the configuration (as YAML) and the network's graph."""
        self.experiment.add_text("config", f"```yaml\n{config}```")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TensorBoard's graph needs torch.jit.trace
            # Each layer as the operation that it is, not as the hundreds of steps in which ours compute it.
            self.experiment.add_graph(as_builtin(net), torch.zeros(1, 1, 28, 28))

    def save(self) -> None:
        """Bring everything to the disk."""
        self.experiment.flush()

    def finalize(self, status: str) -> None:
        """Called at the end of fitting and of testing."""
        self.save()

    def close(self) -> None:
        """Call when the run is over, however it ended."""
        self.experiment.close()
