"""LeNet, as a list of named stages.

LeCun et al., "Gradient-based learning applied to document recognition" (1998), in the simplified form that
d2l.ai teaches: plain average pooling, full connections between the convolutions, no Gaussian output layer.
"""

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

ModuleFactory = Callable[..., nn.Module]


class LeNet(nn.Sequential):
    """Two convolutions and three linear layers: from a 28×28 image to 10 logits.

    Args:
        conv: makes a convolution from torch.nn.Conv2d's arguments.
        pool: makes a pooling layer from torch.nn.AvgPool2d's arguments.
        activation: makes an activation without arguments.

    Shapes: input (N, 1, 28, 28), floating point; output (N, 10).
    """

    def __init__(
        self,
        conv: ModuleFactory = nn.Conv2d,
        pool: ModuleFactory = nn.AvgPool2d,
        activation: ModuleFactory = nn.Sigmoid,
    ) -> None:
        stages: list[tuple[str, nn.Module]] = [
            ("conv1", conv(1, 6, kernel_size=5, padding=2)),
            ("act1", activation()),
            ("pool1", pool(kernel_size=2)),
            ("conv2", conv(6, 16, kernel_size=5)),
            ("act2", activation()),
            ("pool2", pool(kernel_size=2)),
            ("flatten", nn.Flatten()),
            ("fc1", nn.Linear(16 * 5 * 5, 120)),
            ("act3", activation()),
            ("fc2", nn.Linear(120, 84)),
            ("act4", activation()),
            ("fc3", nn.Linear(84, 10)),
        ]
        super().__init__(OrderedDict(stages))


class NormalizedLeNet(nn.Sequential):
    """LeNet's convolutions and linear layers, with batch normalisation, for training in few steps.

    Ioffe and Szegedy, "Batch normalization" (2015). It comes after the pooling, where there are fewer values, and
    before the activation. A maximum is the same on either side of an increasing activation.

    Args:
        conv, pool, activation: as of LeNet.
        norm: makes a normalisation from torch.nn.BatchNorm2d's arguments.
        hidden_norm: makes one from torch.nn.BatchNorm1d's, for the linear layers; None leaves it out.

    Shapes: those of LeNet.
    """

    def __init__(
        self,
        conv: ModuleFactory = nn.Conv2d,
        pool: ModuleFactory = nn.MaxPool2d,
        activation: ModuleFactory = nn.ReLU,
        norm: ModuleFactory = nn.BatchNorm2d,
        hidden_norm: ModuleFactory | None = nn.BatchNorm1d,
    ) -> None:
        stages: list[tuple[str, nn.Module | None]] = [
            ("conv1", conv(1, 6, kernel_size=5, padding=2)),
            ("pool1", pool(kernel_size=2)),
            ("norm1", norm(6)),
            ("act1", activation()),
            ("conv2", conv(6, 16, kernel_size=5)),
            ("pool2", pool(kernel_size=2)),
            ("norm2", norm(16)),
            ("act2", activation()),
            ("flatten", nn.Flatten()),
            ("fc1", nn.Linear(16 * 5 * 5, 120)),
            ("norm3", hidden_norm(120) if hidden_norm else None),
            ("act3", activation()),
            ("fc2", nn.Linear(120, 84)),
            ("norm4", hidden_norm(84) if hidden_norm else None),
            ("act4", activation()),
            ("fc3", nn.Linear(84, 10)),
        ]
        super().__init__(OrderedDict((name, stage) for name, stage in stages if stage is not None))


def xavier_uniform_(model: nn.Module) -> None:
    """Draw every weight of two or more dimensions from Xavier's uniform distribution; leave biases as they are.

    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks" (2010): the
    bound sqrt(6 / (fan_in + fan_out)) keeps the variance of activations and gradients alike from layer to layer.
    """
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            nn.init.xavier_uniform_(parameter)
