"""Measure what activation checkpointing saves and costs, on the CPU.

    python tests/benchmarks/activation_memory.py [--model timm/resnet50] [--images 16]

One forward and backward pass of float32 images of 224x224. The memory is the growth of the
process's peak from after the network was built; the time is the second pass's. tests/gpu measures a
GPU.
"""

import argparse
import os
import platform
import resource
import subprocess
import sys
import time

import torch

import models
from orchestrator.training.task.grad_checkpointing import enable_grad_checkpointing

NETWORKS = ("timm/resnet50", "timm/vit_base_patch16_224", "torchvision/densenet121")


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure(name: str, num_images: int, *, is_checkpointed: bool) -> None:
    torch.manual_seed(0)
    network = models.build(name, num_classes=1000).to(memory_format=torch.channels_last)
    if is_checkpointed:
        enable_grad_checkpointing(network)
    images = torch.randn(num_images, 3, 224, 224).to(memory_format=torch.channels_last)
    before = peak_gb()
    for _ in range(2):
        start_s = time.perf_counter()
        network(images).square().mean().backward()
        seconds = time.perf_counter() - start_s
        network.zero_grad(set_to_none=True)
    print(
        f"{name}, {num_images} images, grad_checkpointing={is_checkpointed}: "
        f"{peak_gb() - before:.2f} GB, {seconds:.2f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=NETWORKS)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--checkpointed", action=argparse.BooleanOptionalAction)
    options = parser.parse_args()
    if options.checkpointed is not None:
        measure(options.model, options.images, is_checkpointed=options.checkpointed)
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}", flush=True)
    for name in [options.model] if options.model else NETWORKS:
        for flag in ("--no-checkpointed", "--checkpointed"):  # a peak is that of a process
            arguments = ["--model", name, "--images", str(options.images), flag]
            subprocess.run([sys.executable, __file__, *arguments], check=True)


if __name__ == "__main__":
    main()
