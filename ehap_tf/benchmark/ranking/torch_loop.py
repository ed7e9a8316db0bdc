"""The peer: Hutchinson's estimate of a CIFAR ResNet by a plain PyTorch loop.

The usual implementation, and the papers': one gradient with `create_graph=True`, then for every
probe one `torch.autograd.grad` and, in Python, one product and sum a layer. PyTorch is no
dependency of this package; without it, the case is reported as failed.
"""

from __future__ import annotations

import importlib
import re
import time
from typing import Any

import numpy as np

from ehap_tf.sensitivity.running.memory import PeakMemory


def measure_torch_loop(model: str, examples: int, probes: int, seed: int) -> dict[str, float]:
    """Times the loop in float32 on random images; runs in a fresh process.

    Args:
        model: "resnet" with a depth of 6n + 2.
        examples: in the Hessian batch, taken at once.
        probes: at least 2; the first is a warm-up.
        seed: of the images and the probes.

    Raises:
        ValueError: another model.
        ModuleNotFoundError: PyTorch is not installed.
    """
    depth = re.fullmatch(r"resnet(\d+)", model)
    if depth is None:
        raise ValueError(f"torch_loop knows resnet20, resnet32, ... only. Received: {model}")
    torch: Any = importlib.import_module("torch")
    torch.manual_seed(seed)
    network = _resnet(torch, int(depth[1])).eval()
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.normal(size=(examples, 3, 32, 32)).astype(np.float32))
    labels = torch.from_numpy(rng.integers(0, 10, examples))
    kernels = [
        module.weight
        for module in network.modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
    ]
    with torch.no_grad():
        network(images[:1])
    loaded = PeakMemory().bytes()
    start = time.perf_counter()
    loss = torch.nn.functional.cross_entropy(network(images), labels)
    gradients = torch.autograd.grad(loss, kernels, create_graph=True)
    traces = [torch.zeros(len(kernel)) for kernel in kernels]
    walls, cpus = [], []
    for _ in range(probes):
        wall, cpu = time.perf_counter(), time.process_time()
        signs = [torch.randint_like(kernel, 2) * 2 - 1 for kernel in kernels]
        products = torch.autograd.grad(gradients, kernels, signs, retain_graph=True)
        for trace, sign, product in zip(traces, signs, products, strict=True):
            trace += (sign * product).flatten(1).sum(1)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    peak = PeakMemory().bytes()
    return {
        "seconds_per_probe": float(np.median(walls[1:])),
        "cpu_seconds_per_probe": float(np.median(cpus[1:])),
        "first_seconds": walls[0],
        "total_seconds_per_probe": (time.perf_counter() - start) / probes,
        "peak_megabytes": peak / 1e6,
        "added_megabytes": (peak - loaded) / 1e6,
    }


def _resnet(torch: Any, depth: int) -> Any:
    """`ehap_tf.models.networks.resnet` with 1x1-convolution shortcuts, in PyTorch."""
    nn = torch.nn

    class Block(nn.Module):  # type: ignore[name-defined]
        def __init__(self, channels: int, filters: int, stride: int) -> None:
            super().__init__()
            self.convolution1 = nn.Conv2d(channels, filters, 3, stride, 1, bias=False)
            self.norm1 = nn.BatchNorm2d(filters)
            self.convolution2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(filters)
            self.shortcut = nn.Identity()
            if stride > 1:
                convolution = nn.Conv2d(channels, filters, 1, stride, bias=False)
                self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(filters))

        def forward(self, x: Any) -> Any:
            y = torch.relu(self.norm1(self.convolution1(x)))
            return torch.relu(self.norm2(self.convolution2(y)) + self.shortcut(x))

    parts = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    channels = 16
    for stage in range(3):
        for block in range((depth - 2) // 6):
            filters = 16 * 2**stage
            parts.append(Block(channels, filters, 2 if stage and not block else 1))
            channels = filters
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
