"""LeNet on Fashion-MNIST, to learn from and to start from.

As a library: `from lenet import LeNet, Classifier, FashionMNIST`, and a plain `lightning.Trainer` trains;
`lenet.load(PATH)` is the trained network.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lenet.data import FashionMNIST, Synthetic
    from lenet.inference import load
    from lenet.models import LeNet
    from lenet.training.module import Classifier

__all__ = ["Classifier", "FashionMNIST", "LeNet", "Synthetic", "load"]

_HOMES = {
    "Classifier": "training.module",
    "FashionMNIST": "data",
    "LeNet": "models",
    "Synthetic": "data",
    "load": "inference",
}


def __getattr__(name: str) -> Any:
    # Loaded when they are asked for: the command line answers a typo without torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'lenet' has no attribute {name!r}")
    return getattr(import_module(f"lenet.{_HOMES[name]}"), name)
