"""LeNet as a readable list of named stages.

61,706 parameters and 416,520 multiply-adds for an image. Its test accuracy on Fashion-MNIST is 0.82, where d2l.ai
published 0.80; with batch normalisation, SiLU and other optimizers it is 0.91 to 0.93.

LeCun et al., "Gradient-based learning applied to document recognition" (1998), in the simplified form that d2l.ai
teaches: plain average pooling, full connections between the convolutions, no Gaussian output layer.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from lenet.errors import UserError

ModuleFactory = Callable[..., nn.Module]

INITS = ("xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "orthogonal", "none")
"""How the initial weights can be drawn."""


class LeNet(nn.Sequential):
    """Two convolutions and some linear layers: from images (N, in_channels, 28, 28) to logits (N, classes).

    Args:
        channels: output channels of the two convolutions.
        kernel_size: of both convolutions. The first one pads the image so that an odd kernel keeps its size.
        hidden: outputs of the linear layers before the last.
        activation: makes an activation, called without arguments.
        conv_activation: the same right after a convolution; None is `activation`, or nothing if there is a `norm`.
        pool: makes a pooling layer, called as `pool(kernel_size=2)`.
        norm: makes a normalisation, called as `norm(channels)`, between pooling and activation. None leaves it out.
        hidden_norm: the same for the linear layers.
        dropout: probability of dropping a value before the second and each later linear layer; 0 leaves the layer out.
        conv: makes a convolution from torch.nn.Conv2d's arguments.

    `description` has the arguments as plain values, to make the same network again; it is None if one cannot be
    imported. Raises a UserError if the kernel leaves nothing of the image.
    """

    def __init__(
        self,
        channels: Sequence[int] = (6, 16),
        kernel_size: int = 5,
        hidden: Sequence[int] = (120, 84),
        activation: ModuleFactory = nn.Sigmoid,
        pool: ModuleFactory = nn.AvgPool2d,
        norm: ModuleFactory | None = None,
        hidden_norm: ModuleFactory | None = None,
        dropout: float = 0.0,
        in_channels: int = 1,
        classes: int = 10,
        conv: ModuleFactory = nn.Conv2d,
        conv_activation: ModuleFactory | None = None,
    ) -> None:
        super().__init__()
        self.description = _described(
            channels=list(channels), kernel_size=kernel_size, hidden=list(hidden), activation=activation, pool=pool,
            norm=norm, hidden_norm=hidden_norm, dropout=dropout, in_channels=in_channels, classes=classes, conv=conv,
            conv_activation=conv_activation,
        )  # fmt: skip
        self.in_channels = in_channels
        first, second = channels
        padding = kernel_size // 2
        size = (28 + 2 * padding - kernel_size + 1) // 2  # 28 → 14
        size = (size - kernel_size + 1) // 2  # 14 → 10 → 5
        if size < 1:
            raise UserError(f"model.kernel_size={kernel_size}: leaves nothing of the image; use 13 or less")

        def activate_and_pool(number: int, outputs: int) -> None:
            if norm is None:
                self.add_module(f"act{number}", (conv_activation or activation)())
            elif conv_activation is not None:
                self.add_module(f"conv_act{number}", conv_activation())
            self.add_module(f"pool{number}", pool(kernel_size=2))
            if norm is not None:
                self.add_module(f"norm{number}", norm(outputs))
                self.add_module(f"act{number}", activation())

        # A Sequential calls its layers in the order in which they are added.
        self.conv1 = conv(in_channels, first, kernel_size=kernel_size, padding=padding)  # 6×28×28
        activate_and_pool(1, first)  # 6×14×14
        self.conv2 = conv(first, second, kernel_size=kernel_size)  # 16×10×10
        activate_and_pool(2, second)  # 16×5×5
        self.flatten = nn.Flatten()  # 400
        width = second * size * size
        for number, outputs in enumerate(hidden, start=1):
            self.add_module(f"fc{number}", nn.Linear(width, outputs))  # 120, then 84
            if hidden_norm is not None:
                self.add_module(f"norm{number + 2}", hidden_norm(outputs))
            self.add_module(f"act{number + 2}", activation())
            if dropout > 0:
                self.add_module(f"drop{number}", nn.Dropout(dropout))
            width = outputs
        self.add_module(f"fc{len(hidden) + 1}", nn.Linear(width, classes))  # 10

    def __getitem__(self, index: Any) -> Any:
        """A layer, or as a plain nn.Sequential some of them: `net[:3]` is the first convolution's block."""
        return nn.Sequential(*list(self)[index]) if isinstance(index, slice) else super().__getitem__(index)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1:] != (self.in_channels, 28, 28):
            wanted = f"(N, {self.in_channels}, 28, 28)"
            raise UserError(f"images: have the shape {tuple(images.shape)}; LeNet takes {wanted}")
        logits: Tensor = super().forward(images)  # type: ignore[no-untyped-call]
        return logits


def _described(**arguments: Any) -> dict[str, Any] | None:
    description: dict[str, Any] = {"_target_": "lenet.models.LeNet"}
    for name, value in arguments.items():
        if callable(value):
            made = value if isinstance(value, partial) else partial(value)
            if not isinstance(made.func, type) or "<locals>" in made.func.__qualname__ or made.args:
                return None
            path = f"{made.func.__module__}.{made.func.__qualname__}"
            value = {"_target_": path, "_partial_": True, **made.keywords}
        description[name] = value
    return description


def init_weights_(model: nn.Module, init: str = "xavier_uniform") -> None:
    """Draw every weight of two or more dimensions anew; leave the others, such as biases, as they are.

    - xavier_uniform, xavier_normal: the variance of activations and gradients stays alike from layer to layer.
      Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks" (2010).
    - kaiming_uniform, kaiming_normal: so does that of activations behind ReLU, which passes half of it on. He et al.,
      "Delving deep into rectifiers" (2015).
    - orthogonal: rows, or columns, at right angles to each other. Saxe et al., "Exact solutions to the nonlinear
      dynamics of learning in deep linear neural networks" (2014).
    - none: all stay as they are.

    Raises a UserError for another name.
    """
    if init not in INITS:
        raise UserError(f"init={init}: should be one of {', '.join(INITS)}")
    for parameter in model.parameters():
        if init != "none" and parameter.dim() >= 2:
            getattr(nn.init, f"{init}_")(parameter)
