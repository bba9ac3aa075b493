"""Optimizers that PyTorch does not have in this form."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Muon(Optimizer):
    """Momentum whose steps are orthogonal matrices, for weights; AdamW for biases and normalisations.

    A weight of two or more dimensions counts as a matrix with a row for each output. A gradient's few large singular
    values would decide where the step goes; here all of them are brought near 1. Jordan et al., "Muon: an optimizer for
    hidden layers in neural networks" (2024), with the scale of Liu et al., "Muon is scalable for LLM training" (2025):
    a step's root mean square is about 0.2 times the learning rate, as it is with Adam, so that one learning rate and
    one weight decay suit both. (torch.optim.Muon takes matrices alone.)

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        momentum: of the weights' gradients, in Nesterov's form.
        betas, eps: Adam's, for all other parameters.
        weight_decay: the share of a parameter, times the learning rate, that it loses in each step.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.001,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if lr < 0:
            raise ValueError(f"lr={lr}: should be 0 or more")
        settings = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        # A step asks the device for nothing, so that a CUDA graph may repeat it; the learning rate may be a tensor.
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
                    direction = (self._orthogonal if parameter.dim() > 1 else self._adam)(parameter, group)
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction.mul_(group["lr"]))
        return loss

    def _orthogonal(self, parameter: Tensor, group: dict[str, Any]) -> Any:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["mean"] = torch.zeros_like(gradient)
        mean = state["mean"].lerp_(gradient, 1 - group["momentum"])
        matrix = gradient.lerp(mean, group["momentum"]).flatten(1)
        return (orthogonalised(matrix) * 0.2 * max(matrix.shape) ** 0.5).reshape(gradient.shape)

    def _adam(self, parameter: Tensor, group: dict[str, Any]) -> Any:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        first, second = group["betas"]
        if not state:
            state["mean"], state["square"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
            state["step"] = torch.zeros((), device=gradient.device)
        step = state["step"].add_(1)
        mean = state["mean"].lerp_(gradient, 1 - first)
        square = state["square"].lerp_(gradient.square(), 1 - second)
        scale = (square / (1 - second**step)).sqrt_().add_(group["eps"])
        return mean.div(scale).div_(1 - first**step)


def orthogonalised(matrix: Tensor) -> Tensor:
    """A matrix with the same singular vectors, and singular values between 0.7 and 1.2 instead of its own.

    Five times X becomes aX + bAX + cA²X, A = XXᵀ, which moves all singular values at once. Jordan's coefficients are
    quick rather than exact: for a learning step, near 1 is as good as 1. Singular values below about a thousandth of
    the matrix's norm stay smaller.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if is_tall else matrix
    wide = wide / (wide.norm() + 1e-7)
    # All is a polynomial in the first A times the first X, and A is much the smaller one.
    products, factor = wide @ wide.T, torch.eye(len(wide), dtype=matrix.dtype, device=matrix.device)
    for _ in range(5):
        polynomial = torch.addmm(products, products, products, beta=-4.7750, alpha=2.0315)
        polynomial.diagonal().add_(3.4445)
        products = polynomial @ products @ polynomial
        factor = polynomial @ factor
    result: Tensor = factor @ wide
    return result.T if is_tall else result
