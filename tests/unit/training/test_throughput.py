"""Readings add up over ranks, and leave out what is not training."""

import time
from collections.abc import Iterator

import pytest
import torch

from data_sharding.loading.loader import Batch
from orchestrator.metrics import rank_parts
from orchestrator.training.monitoring.throughput import ThroughputMeter, flops_metrics


def batches(number: int, wait_s: float) -> Iterator[Batch]:
    for _ in range(number):
        time.sleep(wait_s)  # what is measured
        labels = torch.zeros(8, dtype=torch.int64)
        yield Batch(torch.zeros(8, 1, 2, 2), labels, labels, labels == 0, [])


def test_a_reading() -> None:
    meter = ThroughputMeter()
    for step, _ in enumerate(meter.wrap(batches(10, 0.002))):
        time.sleep(0.05 if step == 5 else 0.004)
        meter.end_step(8)
    meter.exclude(0.03)  # as if that had been an evaluation
    found = meter.pop()
    elapsed_s = 80 / found["perf/images_per_s"]
    assert 0.07 < elapsed_s < 0.2
    assert 0.02 / elapsed_s <= found["perf/data_wait_fraction"] < 0.8
    assert 0.006 <= found["perf/step_time_p50_s"] < found["perf/step_time_p95_s"]
    assert found["perf/step_time_p95_s"] >= 0.05
    assert 0.05 < found["perf/host_mem_peak_gb"] < 50
    assert meter.pop()["perf/images_per_s"] == 0


def test_what_is_read_ahead_counts_in_its_own_step() -> None:
    """As on CUDA, where the last step of a run reads nothing; its speed must not be 0 for that."""
    meter = ThroughputMeter()
    read = meter.wrap(batches(3, 0.0))
    next(read)
    for _ in range(3):
        next(read, None)  # a batch ahead
        time.sleep(0.02)
        meter.end_step(8)
        speed = meter.pop()["perf/images_per_s"]
        assert 8 / 1.0 < speed <= 8 / 0.02


def test_rates_are_sums_over_ranks_and_times_are_means() -> None:
    parts = rank_parts({"perf/images_per_s": 90.0, "perf/step_time_p50_s": 0.5}, num_ranks=2)
    assert parts == {"perf/images_per_s": 90.0, "perf/step_time_p50_s": 0.25}


def test_compute() -> None:
    cost = {"model/gmacs": 4.0, "model/training_gmacs": 12.0, "model/num_params": 1.0}
    found = flops_metrics(cost, num_images=10**6, images_per_s=5000, peak_tflops=1000)
    assert found["perf/total_pflop"] == pytest.approx(4.0e9 * 6 * 1e6 / 1e15)
    assert found["perf/tflops"] == pytest.approx(4.0e9 * 6 * 5000 / 1e12)
    assert found["perf/mfu"] == pytest.approx(0.12)
    assert "perf/mfu" not in flops_metrics(cost, 1, 1.0, None)


def test_what_is_left_out_is_in_no_step() -> None:
    meter = ThroughputMeter()
    start_s = time.perf_counter()
    time.sleep(0.05)
    meter.exclude(time.perf_counter() - start_s)
    meter.end_step(8)
    assert meter.pop()["perf/step_time_p50_s"] < 0.03
