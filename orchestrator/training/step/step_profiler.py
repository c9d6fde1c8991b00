"""Profiles some steps by torch.profiler: a trace of rank 0, and where the time of all ranks goes.

All ranks record, or the others would wait for the one that does. Nothing is random, so the steps
have the bits that they have without. The files appear whole, after the last step.
"""

import logging
import time
from operator import attrgetter
from typing import Self

import torch

from data_sharding.io.atomic_file import write_atomic
from orchestrator.config.profile import Profile
from orchestrator.run.node_times import RankTimes, node_name
from orchestrator.run.rundir import RunDir
from orchestrator.training.distributed.world import World
from orchestrator.training.monitoring.profile_report import Operator, make_report
from orchestrator.training.monitoring.step_timer import StepTimer
from orchestrator.training.monitoring.throughput import ThroughputMeter

log = logging.getLogger(__name__)

_NUM_OPERATORS = 10


class StepProfiler:
    """The profiler of one attempt on one rank; it does nothing outside of its steps."""

    def __init__(
        self,
        steps: tuple[int, int] | None,
        run: RunDir,
        attempt: int,
        world: World,
        timer: StepTimer,
        meter: ThroughputMeter,
    ) -> None:
        self._steps, self._run, self._attempt = steps, run, attempt
        self._world, self._timer, self._meter = world, timer, meter
        self._profiler: torch.profiler.profile | None = None
        self._since_s, self._before = 0.0, timer.total()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Drop an unfinished profile: the attempt has stopped, or failed, among its steps."""
        if self._profiler:
            self._profiler.stop()
            self._profiler = None
            log.warning("the attempt ended before the last profiled step: no profile is kept")

    def prepare_step(self, step: int) -> None:
        """Start before the first step.

        Args:
            step: 0-based.
        """
        if self._steps is None or step + 1 != self._steps[0]:
            return
        begin_s = time.perf_counter()
        self._profiler = torch.profiler.profile()
        self._profiler.start()
        self._synchronize()
        self._before = self._timer.total()
        self._meter.exclude(time.perf_counter() - begin_s)
        self._since_s = self._training_s()

    def end_step(self, num_done: int) -> None:
        """Write the profile after the last step."""
        if self._steps is None or self._profiler is None or num_done != self._steps[1]:
            return
        self._synchronize()
        begin_s = time.perf_counter()
        times, num_steps = self._timer.total()
        own = RankTimes(*(a - b for a, b in zip(times, self._before[0], strict=True)))
        row = (own, num_steps - self._before[1], self._training_s() - self._since_s)
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        ranks = self._world.gather_objects((row, node_name()))
        if self._world.is_main:
            try:
                self._write(profiler, self._steps, *zip(*ranks, strict=True))
            except OSError as error:  # a full disk: no reason to fail
                log.warning("the profile is not written: %s", error)
        self._meter.exclude(time.perf_counter() - begin_s)

    def _training_s(self) -> float:
        """Return a time that stands still while the rank evaluates or saves."""
        return time.perf_counter() - self._meter.excluded_s

    def _write(
        self,
        profiler: torch.profiler.profile,
        steps: tuple[int, int],
        rows: tuple[tuple[RankTimes, int, float], ...],
        nodes: tuple[str, ...],
    ) -> None:
        operators, device_s = _operators(profiler, is_cuda=self._world.device.type == "cuda")
        report = make_report(steps, rows, nodes, operators, device_s)
        log.info("%s", report)
        directory = self._run.profile_dir
        directory.mkdir(exist_ok=True)
        name = f"attempt-{self._attempt:04d}"
        partial = directory / f".{name}.trace.json.gz"
        profiler.export_chrome_trace(str(partial))
        partial.replace(directory / f"{name}.trace.json.gz")
        write_atomic(directory / f"{name}.txt", report + "\n")

    def _synchronize(self) -> None:
        if self._world.device.type == "cuda":
            torch.cuda.synchronize(self._world.device)


def steps_to_profile(profile: Profile, first_step: int, num_steps: int) -> tuple[int, int] | None:
    """Choose the first and the last step to profile in an attempt, by the number of steps done.

    Without `profile.steps` they are the attempt's steps 11 to 20, or its last ten if it is shorter,
    without the first, which compiles and tunes. Of given steps, those that are still to be done.
    """
    if not profile.is_on:
        return None
    if profile.steps:
        first, last = max(profile.steps[0], first_step + 1), profile.steps[1]
    else:
        last = min(first_step + 20, num_steps)
        first = max(last - 9, first_step + 2)
    return (first, last) if first <= last else None


def _operators(
    profiler: torch.profiler.profile, *, is_cuda: bool
) -> tuple[list[Operator], float | None]:
    """Return the operators that take the most time, and the seconds of all kernels on CUDA."""
    averages = list(profiler.key_averages())
    kernels = [
        e
        for e in averages
        if e.device_type == torch._C._autograd.DeviceType.CUDA and not e.is_user_annotation
    ]
    own_us = attrgetter("self_device_time_total" if is_cuda else "self_cpu_time_total")
    events = sorted(kernels if is_cuda else averages, key=own_us, reverse=True)
    top = [Operator(e.key, own_us(e) / 1e6, e.count) for e in events[:_NUM_OPERATORS]]
    return top, sum(map(own_us, kernels)) / 1e6 if is_cuda else None
