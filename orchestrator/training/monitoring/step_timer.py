"""Times the parts of this rank's steps: waiting for data, computing, waiting for other ranks.

Ranks sum their gradients at the end of the backward pass, and those that are ready first wait there
for the slowest. Two moments tell computing from waiting: the rank's own gradients are complete, and
the sums are there. Gradients that are sent earlier overlap with computing and cost no time.

Collectives before that moment count as computing: those of batch norm synchronised over ranks, and
of parameters gathered layer by layer (FSDP), make the ranks that take part equally slow.
"""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.autograd import Variable

from data_sharding.loading.loader import Batch
from orchestrator.run.node_times import RankTimes

_Moment = Any  # of a clock: a float or a torch.cuda.Event


@dataclass
class _Moments:
    """The moments of one step; `waits` are the begin and end of each wait for data."""

    begin: _Moment
    waits: list[tuple[_Moment, _Moment]] = field(default_factory=list)
    own_gradients: _Moment = None
    end: _Moment = None


class StepTimer:
    """Adds up the times of steps; on CUDA those of the device, without synchronising with it."""

    def __init__(self, device: torch.device) -> None:
        self._clock: _Clock = _CudaClock(device) if device.type == "cuda" else _HostClock()
        self._step = _Moments(self._clock.now())
        self._pending: deque[_Moments] = deque()  # steps that the device has yet to finish
        self._num_to_skip = 1  # the first step compiles and tunes kernels
        self._sums, self._num_steps = RankTimes(0.0, 0.0, 0.0), 0
        self._popped = self._sums, self._num_steps

    def begin_step(self) -> None:
        """Note the beginning of a step."""
        self._step = _Moments(self._clock.now())

    def wrap(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on, noting the wait for each."""
        while True:
            begin = self._clock.now()
            batch = next(batches, None)
            self._step.waits.append((begin, self._clock.now()))
            if batch is None:
                return
            yield batch

    @contextmanager
    def last_backward(self, loss: torch.Tensor) -> Iterator[None]:
        """Note the end of a step's gradients in the block, the backward pass that reduces them."""
        loss.register_hook(self._when_own_gradients_are_complete)
        yield
        self._step.end = self._clock.now()
        self._pending.append(self._step)
        while self._pending and self._clock.has_passed(self._pending[0].end):
            self._add(self._pending.popleft())

    def pop(self) -> tuple[RankTimes, int]:
        """Return the times since the last call and the number of their steps."""
        (before, num_before), self._popped = self._popped, self.total()
        times, num_steps = self._popped
        since = RankTimes(*(new - old for new, old in zip(times, before, strict=True)))
        return since, num_steps - num_before

    def total(self) -> tuple[RankTimes, int]:
        """Return the times of all steps and their number."""
        for moments in self._pending:
            self._clock.wait_for(moments.end)
            self._add(moments)
        self._pending.clear()
        return self._sums, self._num_steps

    def _when_own_gradients_are_complete(self, _: torch.Tensor) -> None:
        """Register a callback of the engine: they run in order, and DDP's, which waits, is later.

        The engine makes the caller's stream wait for all gradients before. A hook on each parameter
        would cost more.
        """
        Variable._execution_engine.queue_callback(self._note_own_gradients)

    def _note_own_gradients(self) -> None:
        self._step.own_gradients = self._clock.now()

    def _add(self, step: _Moments) -> None:
        if self._num_to_skip:
            self._num_to_skip -= 1
            return
        seconds = self._clock.elapsed_s
        new = RankTimes(
            busy_s=seconds(step.begin, step.own_gradients),
            data_wait_s=sum(seconds(begin, end) for begin, end in step.waits),
            reduce_s=seconds(step.own_gradients, step.end),
        )
        self._sums = RankTimes(*map(sum, zip(self._sums, new, strict=True)))
        self._num_steps += 1


class _Clock(Protocol):
    def now(self) -> _Moment: ...
    def has_passed(self, moment: _Moment) -> bool: ...
    def wait_for(self, moment: _Moment) -> None: ...
    def elapsed_s(self, begin: _Moment, end: _Moment) -> float: ...


class _HostClock:
    """Where the host computes, or waits for what computes."""

    def now(self) -> float:
        return time.perf_counter()

    def has_passed(self, moment: float) -> bool:
        return True

    def wait_for(self, moment: float) -> None:
        pass

    def elapsed_s(self, begin: float, end: float) -> float:
        return end - begin


class _CudaClock:
    """Events on the stream that computes.

    The host runs ahead of it. Waiting for data takes time there only if the stream ran dry.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def has_passed(self, moment: torch.cuda.Event) -> bool:
        return bool(moment.query())

    def wait_for(self, moment: torch.cuda.Event) -> None:
        moment.synchronize()

    def elapsed_s(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return float(begin.elapsed_time(end)) / 1000
