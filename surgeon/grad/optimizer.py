"""Optimizers and learning-rate schedules in numpy: the parameters of a block are small beside its activations."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Arrays: TypeAlias = dict[str, NDArray[Any]]

ScheduleName = Literal["cosine", "one_cycle", "constant"]
OptimizerName = Literal["adam", "sgd"]
EPSILON = 1e-8


@dataclass
class Optimizer:
    """Adam with decoupled weight decay, or stochastic gradient descent with momentum.

    Adam: Kingma and Ba, arXiv 1412.6980; decoupled decay: Loshchilov and Hutter, arXiv 1711.05101.

    Attributes:
        kind: Which of the two.
        decay: What matrices and kernels lose per step, times the rate; biases and scales, which have at most one axis longer
            than 1, do not decay.
        clip: The largest norm of all gradients together, or None.
        momentum: Of gradients; Adam's first beta.
        second: Adam's second beta.
        steps: Steps taken so far.
        memory: Running means of gradients (``mean/NAME``) and of their squares (``square/NAME``).
    """

    kind: OptimizerName = "adam"
    decay: float = 0.0
    clip: float | None = None
    momentum: float = 0.9
    second: float = 0.999
    steps: int = 0
    memory: Arrays = field(default_factory=dict)

    def step(self, parameters: Arrays, gradients: Mapping[str, NDArray[Any]], rate: float) -> None:
        """Move the parameters, in place; not at all where a gradient is not finite, for running means would keep that.

        Args:
            parameters: By name.
            gradients: For some of them.
            rate: The learning rate.
        """
        self.steps += 1
        if not all(np.isfinite(each).all() for each in gradients.values()):
            return
        shrink = self._shrink(gradients)
        for name, gradient in gradients.items():
            value = parameters[name]
            change = self._change(name, np.asarray(gradient, value.dtype) * value.dtype.type(shrink))
            if self.decay and sum(size > 1 for size in value.shape) > 1:
                change = change + self.decay * value
            value -= (rate * change).astype(value.dtype)

    def _shrink(self, gradients: Mapping[str, NDArray[Any]]) -> float:
        if self.clip is None:
            return 1.0
        norm = math.sqrt(sum(float(np.square(each, dtype=np.float64).sum()) for each in gradients.values()))
        return min(1.0, self.clip / max(norm, EPSILON))

    def _change(self, name: str, gradient: NDArray[Any]) -> NDArray[Any]:
        mean = self.memory.setdefault(f"mean/{name}", np.zeros_like(gradient))
        mean *= self.momentum
        if self.kind == "sgd":
            mean += gradient
            return mean
        mean += (1 - self.momentum) * gradient
        square = self.memory.setdefault(f"square/{name}", np.zeros_like(gradient))
        square *= self.second
        square += (1 - self.second) * np.square(gradient)
        unbiased = math.sqrt(1 - self.second**self.steps) / (1 - self.momentum**self.steps)
        return np.asarray(unbiased * mean / (np.sqrt(square) + EPSILON))


def rate_at(schedule: ScheduleName, step: int, steps: int) -> float:
    """The learning rate at a step, relative to the largest.

    Args:
        schedule: ``cosine`` falls to nothing along half a cosine (arXiv 1608.03983), ``one_cycle`` rises during the first
            three tenths and then falls likewise (arXiv 1708.07120), ``constant`` stays.
        step: From 0.
        steps: How many there will be.
    """
    if schedule == "constant":
        return 1.0
    done = (step + 0.5) / max(steps, 1)
    if schedule == "one_cycle":
        rise = 0.3
        if done < rise:
            return 0.5 * (1 - math.cos(math.pi * done / rise)) * 0.96 + 0.04
        done = (done - rise) / (1 - rise)
    return 0.5 * (1 + math.cos(math.pi * done))
