"""Optimizers that PyTorch does not have in this form."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

A, B, C = 3.4445, -4.7750, 2.0315
"""Of the polynomial Ax + Bx³ + Cx⁵, Jordan's: five times, it brings every x from 0.0015 to 1 between 0.68 and 1.2."""


class Muon(Optimizer):
    """SGD with momentum whose steps are made nearly orthogonal, for weights; AdamW for all other parameters.

    A weight of two or more dimensions counts as a matrix with a row for each output. A gradient's few large singular
    values would decide where the step goes; here all of them are brought near 1. Jordan et al., "Muon: an optimizer for
    hidden layers in neural networks" (2024); they leave the first and the last layer to AdamW. Scaled as by Liu et al.,
    "Muon is scalable for LLM training" (2025): the root mean square of a weight's step is at most about 0.2 times the
    learning rate, as large as AdamW's usually is, so that weights and biases share learning rate and weight decay.
    (torch.optim.Muon takes matrices alone.)

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        momentum: of the weights' gradients, in Nesterov's form.
        betas, eps: AdamW's, for all other parameters.
        weight_decay: the share of a parameter, times the learning rate, that it loses in each step.

    Raises a ValueError for an argument out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.01,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if len(betas) != 2 or not all(0 <= each < 1 for each in (momentum, *betas)):
            raise ValueError(f"momentum={momentum}, betas={betas}: should be one and two numbers from 0, below 1")
        if not all(each >= 0 for each in (lr, eps, weight_decay)):
            raise ValueError(f"lr={lr}, eps={eps}, weight_decay={weight_decay}: should be 0 or more")
        settings = {"lr": lr, "momentum": momentum, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        # A step never waits for the device, so that a CUDA graph may repeat it; the learning rate may be a tensor.
        super().__init__(params, {**settings, "capturable": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient; returns what the closure does, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    direction = (_muon if parameter.dim() > 1 else _adam)(self.state[parameter], parameter.grad, group)
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction.mul_(group["lr"]))
        return loss


def _muon(state: dict[str, Any], gradient: Tensor, group: dict[str, Any]) -> Tensor:
    if not state:
        state["mean"] = torch.zeros_like(gradient)
    mean = state["mean"].lerp_(gradient, 1 - group["momentum"])
    matrix: Tensor = gradient.lerp(mean, group["momentum"]).flatten(1)
    return orthogonalised(matrix).mul(0.2 * max(matrix.shape) ** 0.5).reshape(gradient.shape)


def _adam(state: dict[str, Any], gradient: Tensor, group: dict[str, Any]) -> Tensor:
    if not state:
        state["mean"], state["square"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        state["step"] = torch.zeros((), dtype=torch.float32, device=gradient.device)
    first, second = group["betas"]
    step = state["step"].add_(1)
    mean: Tensor = state["mean"].lerp_(gradient, 1 - first)
    square = state["square"].lerp_(gradient.square(), 1 - second)
    scale = (square / (1 - second**step)).sqrt_().add_(group["eps"])
    return mean.div(scale).div_(1 - first**step)


def orthogonalised(matrix: Tensor) -> Tensor:
    """A matrix with the same singular vectors, and singular values between 0.68 and 1.2 instead of its own.

    For a learning step, near 1 is as good as 1. Singular values below 0.0015 of the matrix's norm stay smaller.
    Computed in float32 or more, whatever the matrix is.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    with torch.autocast(matrix.device.type, enabled=False):
        wide = (matrix.T if is_tall else matrix).to(torch.promote_types(matrix.dtype, torch.float32))
        wide = wide / (wide.norm() + 1e-7)
        # In place of the matrix X, the smaller XXᵀ goes through the iteration; X is multiplied once, with all factors.
        # In half precision, rounding would make some of its eigenvalues negative, and these grow without bound.
        products = wide @ wide.T
        factor = polynomial = _polynomial(products)
        for _ in range(4):
            products = polynomial @ products @ polynomial
            polynomial = _polynomial(products)
            factor = polynomial @ factor
        result: Tensor = factor @ wide
    return result.T if is_tall else result


def _polynomial(products: Tensor) -> Tensor:
    """What X is multiplied by, of products XXᵀ: A + B XXᵀ + C (XXᵀ)²."""
    result = torch.addmm(products, products, products, beta=B, alpha=C)
    result.diagonal().add_(A)
    return result
