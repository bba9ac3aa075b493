"""Muon: its nearly orthogonal steps, AdamW for the rest, and restoring its state."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from lenet import LeNet
from lenet.training.optimizers import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(6, 25), (16, 150), (120, 400), (84, 120), (120, 84), (1, 25), (25, 1)])
def test_all_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape)
    values = torch.linalg.svdvals(orthogonalised(matrix))
    assert 0.6 < values.min() <= values.max() < 1.3
    # The same singular vectors: between them, the result is a diagonal matrix.
    left, own_values, right = torch.linalg.svd(matrix, full_matrices=False)
    inner = left.T @ orthogonalised(matrix) @ right.T
    torch.testing.assert_close(inner, inner.diagonal().diag(), rtol=0, atol=1e-3)
    assert own_values.max() > 1.3  # which the matrix's own were not


@pytest.mark.parametrize("shape", [(120, 400), (120, 84)])
def test_half_precision_makes_no_step_longer(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape[0], 1) @ torch.randn(1, shape[1])  # all singular values but one are rounding
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.linalg.svdvals(orthogonalised(matrix)).max() < 1.3
    assert torch.linalg.svdvals(orthogonalised(matrix.bfloat16())).max() < 1.3


@pytest.mark.parametrize("shape", [(120, 400), (84, 120), (120, 84)])
def test_ten_steps_of_a_matrix_are_those_of_pytorchs_muon(shape: tuple[int, int]) -> None:
    start = torch.randn(shape)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    settings: dict[str, Any] = {"lr": 0.01, "momentum": 0.8, "weight_decay": 0.1}
    optimizers = [Muon([ours], **settings), torch.optim.Muon([theirs], **settings, adjust_lr_fn="match_rms_adamw")]
    for _ in range(10):
        gradient = torch.randn(shape)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for each in optimizers:
            each.step()
    change, its_change = ours - start, theirs - start  # theirs is computed in bfloat16
    assert (change - its_change).norm() < 0.02 * its_change.norm()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolutions_weight_takes_the_steps_of_a_matrix(layout: torch.memory_format) -> None:
    start = torch.randn(16, 6, 5, 5)
    kernel, matrix = nn.Parameter(start.to(memory_format=layout, copy=True)), nn.Parameter(start.flatten(1).clone())
    optimizers = [Muon([each], lr=0.01) for each in (kernel, matrix)]
    for _ in range(3):
        gradient = torch.randn(16, 6, 5, 5)
        kernel.grad, matrix.grad = gradient.to(memory_format=layout, copy=True), gradient.flatten(1)
        for each in optimizers:
            each.step()
    torch.testing.assert_close(kernel.flatten(1), matrix)


@pytest.mark.parametrize("wrong", [{"lr": -1}, {"lr": math.nan}, {"betas": (0.9, 1.0)}, {"betas": (0.9,)}, {"eps": -1}])
def test_arguments_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*should be"):
        Muon([nn.Parameter(torch.zeros(2))], **wrong)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_step_is_as_long_whatever_the_size_of_the_gradient(scale: float) -> None:
    weight = nn.Parameter(torch.zeros(120, 400))
    weight.grad = scale * torch.randn(120, 400)
    Muon([weight], lr=0.01).step()
    assert weight.square().mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.2)
    assert (weight * weight.grad).sum() < 0  # downhill


def test_biases_and_normalisations_take_the_steps_of_adamw() -> None:
    settings = {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1}
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 12)) for _ in range(2))
    optimizers = [Muon([ours], **settings), AdamW([theirs], **settings)]  # type: ignore[arg-type]
    for _ in range(20):
        gradient = torch.randn(12)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for each in optimizers:
            each.step()
    torch.testing.assert_close(ours, theirs)


def test_a_parameter_without_gradient_stays_and_weight_decay_shrinks_the_others() -> None:
    still, decayed = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    decayed.grad = torch.zeros(3, 3)
    Muon([still, decayed], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(still, torch.ones(3, 3))
    torch.testing.assert_close(decayed, torch.full((3, 3), 0.95))


def test_a_restored_state_goes_on_with_the_same_bits() -> None:
    nets = [LeNet(norm=nn.BatchNorm2d)]
    images, labels = torch.rand(32, 1, 28, 28), torch.arange(32) % 10
    optimizers = [Muon(nets[0].parameters(), lr=0.01)]
    for step in range(6):
        if step == 3:
            nets.append(copy.deepcopy(nets[0]))
            optimizers.append(Muon(nets[1].parameters(), lr=0.01))
            optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_closure_is_evaluated_with_gradients() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([weight], lr=0.1)

    def closure() -> torch.Tensor:
        loss = weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    assert optimizer.step(closure) == 4
    assert not torch.equal(weight, torch.ones(2, 2))
