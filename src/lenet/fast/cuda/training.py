"""A whole LeNet's training on a GPU: the tensors are PyTorch's own, the steps the kernel's of lenet.cu."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from lenet.fast.cuda import launch
from lenet.fast.cuda.compiler import Kind
from lenet.fast.kernels import is_readable
from lenet.fast.network import UnsuitableError, match

PLAIN_SGD, MOMENTUM_SGD, ADAM = range(3)  # as in update.cuh
STATE = ((), ("momentum_buffer",), ("exp_avg", "exp_avg_sq"))
"""What each of them keeps of a parameter, by PyTorch's names."""
SUPPORTED = {"maximize": False, "differentiable": False, "amsgrad": False, "dampening": 0}
HYPERPARAMETERS = ("momentum", "nesterov", "weight_decay", "betas", "eps", "decoupled_weight_decay", *SUPPORTED)


class CudaTraining:
    """A whole LeNet, trained by one kernel launch for many steps.

    The same steps give the same bits, in one launch or in several. `batch_size` is how many images the largest step to
    come has; the kernel's tiles are chosen for it.

    Raises an UnsuitableError if the network is not a whole LeNet whose blocks are of one kind, or the optimizer is not
    one of PyTorch's SGD, Adam and AdamW for exactly its parameters, with options that the kernel has, and no hooks;
    an UnavailableError if the kernel cannot be compiled or launched here.
    """

    def __init__(
        self, net: nn.Module, optimizer: Optimizer, batch_size: int, load: launch.Loader = launch.load
    ) -> None:
        self._net, self._optimizer, self._batch_size = net, optimizer, batch_size
        self._device = next(iter(net.parameters()), torch.empty(0)).device
        self._matched = self._match()
        (_, activation, pooling), algorithm = self._matched[0].stages[0].kind, self._matched[1]
        kind = Kind(relu=activation == 2, maximum=pooling == 1, optimizer=algorithm)
        self._kernel = load(kind, self._device, batch_size)
        group = self._kernel.variant.images * self._kernel.variant.cluster
        self._room = -(-batch_size // group) * group
        size = self._room * launch.KEPT + self._kernel.blocks * launch.PARTIAL
        self._workspace = self._empty(size)
        self._gradients = [self._empty(*each.shape) for each in self._matched[0].parameters()]
        self._steps: tuple[list[tuple[Tensor, int]], int] = ([], 0)  # see _steps_done

    def is_current(self) -> bool:
        """Whether network and optimizer are still the same, in all but the numbers and the learning rate."""
        try:
            return self._match() == self._matched
        except UnsuitableError:
            return False

    def train(
        self, images: Tensor, labels: Tensor, order: Tensor, sizes: Sequence[int], rates: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """Update parameters and the optimizer's state by some steps, without waiting for the device.

        The last step's gradients become each parameter's `grad`; the next call writes into the same tensors.

        Args:
            images: (N, 1, 28, 28), bytes, contiguous.
            labels: (N,) int64, 0 to 9; with others, losses become NaN.
            order: (sum of sizes,) int64: which images, one step's after another's; not checked.
            sizes: how many images each step has.
            rates: the learning rate of each step.

        Returns:
            The mean loss of each step (steps,), and how many of its images were classified rightly (steps,) int64.
        """
        steps, parameters = len(sizes), self._matched[0].parameters()
        bad = not all(0 < size <= self._batch_size for size in sizes) or len(rates) != steps
        if bad or order.shape != (sum(sizes),) or labels.shape != images.shape[:1] or images.shape[1:] != (1, 28, 28):
            raise ValueError(
                f"sizes must be 1 to {self._batch_size}, with a rate each, and fit order, images and labels"
            )
        losses, correct = self._empty(steps), self._empty(steps, dtype=torch.int64)
        if not steps:
            return losses, correct
        first, second = self._state(parameters)
        done = self._steps_done(parameters)
        table = torch.tensor(self._coefficients(rates, done), dtype=torch.float64).float()
        starts = torch.tensor([0, *accumulate(sizes)], dtype=torch.int32)
        tensors: dict[str, Tensor | Sequence[Tensor]] = {
            "images": self._checked(images, torch.uint8),
            "labels": self._checked(labels, torch.int64),
            "order": self._checked(order, torch.int64),
            "starts": self._to_device(starts),
            "coefficients": self._to_device(table),
            "parameters": [self._checked(each) for each in parameters],
            "gradients": self._gradients,
            "first": [self._checked(each) for each in first],
            "second": [self._checked(each) for each in second],
            "workspace": self._workspace,
            "losses": losses,
            "correct": correct,
            "arrivals": torch.zeros(96, dtype=torch.int32, device=self._device),
        }
        self._kernel(launch.arguments(tensors, steps, self._room))
        for parameter, gradient in zip(parameters, self._gradients, strict=True):
            parameter.grad = gradient
        if self._matched[1] == ADAM:
            counters = [self._optimizer.state[each]["step"] for each in parameters]
            torch._foreach_add_(counters, steps)
            self._steps = [(each, each._version) for each in counters], done + steps
        return losses, correct

    def _match(self) -> tuple[Any, ...]:
        """The network's plan, the optimizer's algorithm and its hyperparameters; raises an UnsuitableError."""
        plan, optimizer = match(self._net, self._device.type), self._optimizer
        name = type(optimizer).__name__
        if not plan.is_whole or len({each.device for each in plan.parameters()}) > 1:
            raise UnsuitableError("the network is not a whole LeNet with two blocks of one kind, on one device")
        if type(optimizer) not in (SGD, Adam, AdamW) or len(optimizer.param_groups) != 1:
            raise UnsuitableError(f"{name} is not one of SGD, Adam and AdamW, with one group of parameters")
        group = optimizer.param_groups[0]
        if len(group["params"]) != launch.PARAMETERS or {*map(id, group["params"])} != {*map(id, plan.parameters())}:
            raise UnsuitableError(f"{name} has other parameters than the network")
        if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
            raise UnsuitableError(f"{name} has hooks")
        options = {key: group[key] for key in HYPERPARAMETERS if key in group}
        wrong = [key for key, value in SUPPORTED.items() if options.get(key, value) != value]
        wrong += [key for key, value in options.items() if isinstance(value, Tensor)]
        wrong += ["betas"] if any(isinstance(each, Tensor) for each in options.get("betas", ())) else []
        if wrong:
            raise UnsuitableError(f"{name}: {wrong[0]}={options[wrong[0]]} is not what the kernel has")
        algorithm = ADAM if "betas" in options else MOMENTUM_SGD if options["momentum"] else PLAIN_SGD
        return plan, algorithm, options

    def _state(self, parameters: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The optimizer's state, with what it does not have yet, as PyTorch would lay it out."""
        group, names = self._optimizer.param_groups[0], STATE[self._matched[1]]
        for parameter in group["params"] if names else []:
            state = self._optimizer.state[parameter]
            if self._matched[1] == ADAM and "step" not in state:
                on_device = group["capturable"] or group["fused"]
                device = self._device if on_device else torch.device("cpu")
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            for name in names:
                if state.get(name) is None:
                    state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        states = [[self._optimizer.state[each][name] for each in parameters] for name in names]
        # What an algorithm does not have, the kernel does not touch: any tensors do.
        first, second = [*states, parameters, parameters][:2]
        return first, second

    def _coefficients(self, rates: Sequence[float], done: int) -> list[Sequence[float]]:
        """The rows of the table that update.cuh explains, in double precision; `done`: how many steps there were."""
        _, algorithm, options = self._matched
        decay = options["weight_decay"]
        if algorithm != ADAM:
            momentum, nesterov = options["momentum"], options["nesterov"]
            factors = (1.0, momentum) if nesterov else (0.0, 1.0)
            return [(decay, momentum, *factors, rate, 0, 0, 0) for rate in rates]
        beta1, beta2 = options["betas"]
        decoupled = options.get("decoupled_weight_decay", type(self._optimizer) is AdamW)
        rows: list[Sequence[float]] = []
        for step, rate in enumerate(rates, start=done + 1):
            decays = (0.0, 1 - rate * decay) if decoupled else (decay, 1.0)
            corrected = rate / (1 - beta1**step), (1 - beta2**step) ** -0.5
            rows.append((*decays, 1 - beta1, beta2, 1 - beta2, *corrected, options["eps"]))
        return rows

    def _steps_done(self, parameters: list[Tensor]) -> int:
        """How many steps Adam has made: counted here, unless somebody else made some, as to read it is to wait."""
        if self._matched[1] != ADAM:
            return 0
        counters, (known, done) = [self._optimizer.state[each]["step"] for each in parameters], self._steps
        now = zip(counters, known, strict=False)
        if not (known and all(each is ours and each._version == version for each, (ours, version) in now)):
            values = {int(each) for each in counters}
            if len(values) > 1:
                raise ValueError(f"the optimizer has made different numbers of steps with the parameters: {values}")
            done = values.pop()
        return done

    def _empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self._device)

    def _to_device(self, tensor: Tensor) -> Tensor:
        pinned = tensor.pin_memory() if self._device.type == "cuda" else tensor  # a copy of other memory would wait
        return pinned.to(self._device, non_blocking=True)

    def _checked(self, tensor: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The tensor; raises a ValueError if the kernel cannot read it."""
        aligned = tensor.data_ptr() % 16 == 0 or dtype == torch.int64  # these are read one by one
        readable = is_readable(tensor, dtype, device=self._device.type) and tensor.device == self._device
        if not (readable and aligned and tensor.is_contiguous()):
            found = f"{tensor.dtype} on {tensor.device}"
            raise ValueError(f"the kernel needs contiguous, aligned {dtype} on {self._device}, not {found}")
        return tensor
