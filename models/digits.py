"""Trains the demo's digit classifier from scratch and writes ``digits.onnx`` next to this file.

``python models/digits.py`` needs ``torch``, ``onnx`` and ``scikit-learn``; surgeon itself needs none of the
training code. The network is small but has the structures that make pruning hard: residual sums, depthwise convolution,
squeeze-excite gates and a concatenation of branches.
"""

from __future__ import annotations

from pathlib import Path

import digits_data
import exporting
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

SEED = 0
EPOCHS = 60
OUTPUT = Path(__file__).with_name("digits.onnx")


class ConvNorm(nn.Sequential):
    """Convolution, batch normalization and, unless ``act`` is false, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        *,
        groups: int = 1,
        act: bool = True,
    ):
        padding = kernel // 2
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU() if act else nn.Identity(),
        )


class Residual(nn.Module):
    """The basic block of ResNet: two 3×3 convolutions and the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(ConvNorm(width, width), ConvNorm(width, width, act=False))

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(images + self.body(images))


class SqueezeExcite(nn.Module):
    """A gate per channel computed from the mean of all channels."""

    def __init__(self, width: int, squeezed: int):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)

    def forward(self, images: Tensor) -> Tensor:
        gate = self.expand(torch.relu(self.reduce(images.mean((2, 3), keepdim=True))))
        return images * functional.hardsigmoid(gate)


class InvertedResidual(nn.Module):
    """Expand, depthwise convolution, squeeze-excite, project: the block of MobileNetV3."""

    def __init__(self, inputs: int, expanded: int, outputs: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            ConvNorm(inputs, expanded, 1),
            ConvNorm(expanded, expanded, 3, stride, groups=expanded),
            SqueezeExcite(expanded, expanded // 4),
            ConvNorm(expanded, outputs, 1, act=False),
        )
        self.keeps_shape = stride == 1 and inputs == outputs

    def forward(self, images: Tensor) -> Tensor:
        return images + self.body(images) if self.keeps_shape else self.body(images)


class Branches(nn.Module):
    """Three parallel branches, concatenated and mixed, with a skip connection."""

    def __init__(self, width: int, branch: int):
        super().__init__()
        self.point = ConvNorm(width, branch, 1)
        self.near = ConvNorm(width, branch, 3)
        self.far = nn.Sequential(
            ConvNorm(width, branch, 1), ConvNorm(branch, branch, 3), ConvNorm(branch, branch, 3)
        )
        self.mix = ConvNorm(3 * branch, width, 1, act=False)

    def forward(self, images: Tensor) -> Tensor:
        joined = torch.cat([self.point(images), self.near(images), self.far(images)], 1)
        return torch.relu(images + self.mix(joined))


def network() -> nn.Module:
    """About 300,000 parameters; input ``[N, 1, 8, 8]``, output ``[N, 10]`` logits."""
    return nn.Sequential(
        ConvNorm(1, 32),
        Residual(32),
        InvertedResidual(32, 96, 64, stride=2),
        Residual(64),
        InvertedResidual(64, 192, 64, stride=1),
        Branches(64, 48),
        InvertedResidual(64, 192, 96, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def augment(images: Tensor) -> Tensor:
    """Small random rotation, scaling and shift of every image."""
    count = len(images)
    angle = (torch.rand(count) - 0.5) * 0.5
    scale = 1 + (torch.rand(count) - 0.5) * 0.3
    matrix = torch.stack([angle.cos() * scale, -angle.sin(), angle.sin(), angle.cos() * scale], 1).view(
        count, 2, 2
    )
    shift = (torch.rand(count, 2, 1) - 0.5) * 0.35
    grid = functional.affine_grid(torch.cat([matrix, shift], 2), list(images.shape), align_corners=False)
    # Images are shifted so that what comes in from outside is background (-1), not grey (0).
    return functional.grid_sample(images + 1, grid, align_corners=False) - 1


def train(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """One cycle of AdamW with label smoothing over the augmented training images."""
    batch = 50
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=2e-2)
    steps = EPOCHS * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    model.train()
    for epoch in range(EPOCHS):
        for chosen in torch.randperm(len(images)).split(batch):
            loss = functional.cross_entropy(
                model(augment(images[chosen])), labels[chosen], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: loss {loss.item():.3f}")


def accuracy(model: nn.Module) -> float:
    """Fraction of the held-out test images that are classified correctly."""
    right = total = 0
    with torch.no_grad():
        for batch in digits_data.test():
            guesses = model(torch.from_numpy(batch["input"])).argmax(1).numpy()
            right, total = right + int((guesses == batch["labels"]).sum()), total + len(guesses)
    return right / total


def main() -> None:
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    model = network()
    images, labels = digits_data.training_arrays()
    train(model, torch.from_numpy(images), torch.from_numpy(labels))
    model.eval()
    reached = accuracy(model)
    count = int(np.sum([parameter.numel() for parameter in model.parameters()]))
    exporting.export(model, (1, 8, 8), "digits", OUTPUT)
    print(f"{OUTPUT.name}: {count} parameters, {OUTPUT.stat().st_size} bytes, test accuracy {reached:.4f}")
    if reached < 0.98:
        raise SystemExit("the recipe promises at least 98 % on the held-out images")


if __name__ == "__main__":
    main()
