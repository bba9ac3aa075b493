"""LeNet's epoch in JAX: one jitted scan over all steps."""

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves memory to the other contenders

import jax
import jax.numpy as jnp

jax.config.update("jax_default_matmul_precision", "highest")  # float32, not TF32


def epochs(images: Any, labels: Any, weights: list[Any], size: int, lr: float) -> Callable[[int], float]:
    """What trains an epoch, by its number, and returns its mean loss; the left-over batch is left out.

    NumPy arrays: images (N, 1, 28, 28) uint8, labels (N,), weights and biases in the order of PyTorch's LeNet.
    """
    images, labels, steps = jnp.asarray(images), jnp.asarray(labels), len(labels) // size
    weights = [jnp.asarray(each) for each in weights]

    def block(values: Any, weight: Any, bias: Any, padding: int) -> Any:
        layers, window = ("NCHW", "OIHW", "NCHW"), (1, 1, 2, 2)
        values = jax.lax.conv_general_dilated(
            values, weight, (1, 1), [(padding, padding)] * 2, dimension_numbers=layers
        )
        values = jax.nn.sigmoid(values + bias[:, None, None])
        return jax.lax.reduce_window(values, 0.0, jax.lax.add, window, window, "VALID") / 4

    def loss(weights: list[Any], images: Any, labels: Any) -> Any:
        values = block(images, weights[0], weights[1], 2)
        values = block(values, weights[2], weights[3], 0).reshape(len(images), -1)
        for layer in (4, 6):
            values = jax.nn.sigmoid(values @ weights[layer].T + weights[layer + 1])
        values = values @ weights[8].T + weights[9]
        return -jax.nn.log_softmax(values)[jnp.arange(len(labels)), labels].mean()

    def step(weights: list[Any], chosen: Any) -> Any:
        batch = images[chosen].astype(jnp.float32) / 255
        value, gradients = jax.value_and_grad(loss)(weights, batch, labels[chosen])
        return [weight - lr * gradient for weight, gradient in zip(weights, gradients, strict=True)], value

    def scan(weights: list[Any], key: Any) -> Any:
        order = jax.random.permutation(key, len(labels))[: steps * size].reshape(steps, size)
        return jax.lax.scan(step, weights, order)

    jitted = jax.jit(scan)

    def epoch(number: int) -> float:
        nonlocal weights
        weights, losses = jitted(weights, jax.random.key(number))
        return float(losses.mean())

    return epoch
