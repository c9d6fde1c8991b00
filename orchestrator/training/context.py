"""The parts of a run on one rank, and the actions of the loop that take several of them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from timm.scheduler.scheduler import Scheduler

from data_sharding.errors import DataError
from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.config.schema import Config
from orchestrator.run.outcome import RunOutcome, StepRequest
from orchestrator.run.plan import Plan
from orchestrator.run.rundir import RunDir, read_json_lines
from orchestrator.training.distributed.world import World
from orchestrator.training.inputs.datasets import Datasets
from orchestrator.training.inputs.device import Device
from orchestrator.training.monitoring import console_log, startup_timer, watchdog
from orchestrator.training.monitoring.metric_log import MetricLog
from orchestrator.training.monitoring.predictions import save_predictions
from orchestrator.training.monitoring.throughput import flops_metrics
from orchestrator.training.state.async_saver import AsyncCheckpointer
from orchestrator.training.state.train_state import TrainState
from orchestrator.training.step.compile import uncompiled
from orchestrator.training.step.diagonal_hessian import DiagonalHessian
from orchestrator.training.step.evaluate import evaluate
from orchestrator.training.step.phases import Phases
from orchestrator.training.step.train_step import TrainStep
from orchestrator.training.stop_signal import StopSignal
from orchestrator.training.task.losses import Task


@dataclass(frozen=True)
class TrainContext:
    """The parts of a run on this rank. `metric_log` writes on rank 0 only."""

    run: RunDir
    config: Config
    world: World
    metric_log: MetricLog
    datasets: Datasets
    device: Device
    model_cost: Mapping[str, float]
    state: TrainState
    task: Task
    train_step: TrainStep
    schedule: Scheduler
    phases: Phases
    hessian: DiagonalHessian
    store: CheckpointStore
    saver: AsyncCheckpointer

    @property
    def plan(self) -> Plan:
        return self.datasets.plan

    def request(self, stop_signal: StopSignal, error: DataError | None) -> StepRequest:
        """Choose this rank's request; after the next step all ranks execute the highest one.

        Args:
            error: the error of a batch that will be needed within the next steps.
        """
        if stop_signal:
            return StepRequest.STOP
        if error:
            return StepRequest.GIVE_UP
        return StepRequest.SAVE if self.saver.is_due() else StepRequest.NOTHING

    def log_step(self, num_done: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step to the metric log, and the main ones to the console."""
        sizes, peak = self.datasets.train.sizes, self.config.runtime.peak_tflops_per_device
        size_ratio = sizes(num_done - 1) / sizes.last
        flops = flops_metrics(
            self.model_cost,
            sizes.num_of_last(num_done) * self.plan.global_batch_size,
            metrics["perf/images_per_s"] * size_ratio**2,
            peak * self.world.size if peak else None,
        )
        metrics = {**metrics, "train/lr": self.state.lr, **flops}
        self.metric_log.log(num_done, metrics)
        console_log.log_progress(self.plan, num_done, metrics)

    def evaluate(self, num_done: int) -> dict[str, float]:
        """Evaluate on the validation split; if images cannot be read, save before the error."""
        try:
            return self._evaluate(num_done)
        except DataError:
            self.save(num_done, {})
            self.shutdown()
            raise

    def _evaluate(self, num_done: int) -> dict[str, float]:
        with uncompiled(self.config.recipe.compile):
            metrics, predictions = evaluate(
                self.state.eval_model,
                self.task,
                self.datasets.val,
                self.config,
                self.world,
                self.device,
                forward_is_collective=self.state.strategy.forward_is_collective,
                with_predictions=self.config.logging.plots and num_done == self.plan.num_steps,
            )
        if self.world.is_main and predictions is not None:
            save_predictions(self.run, predictions)
        self.metric_log.log(num_done, metrics)
        console_log.log_evaluation(self.plan, num_done, metrics)
        return metrics

    def evaluate_restored(self, num_done: int) -> dict[str, float]:
        """Read a checkpoint's metrics, or evaluate it if its attempt stopped before it could.

        The metrics are added to its manifest, without which it could never become the best.
        """
        *_, logged = (None, *self._logged_evaluations(num_done))
        metrics = self.world.broadcast_object(logged) or self._evaluate(num_done)
        if self.world.is_main and not self.store.manifest(num_done).metrics:
            self.store.set_metrics(num_done, metrics)
        return dict(metrics)

    def _logged_evaluations(self, num_done: int) -> Iterator[dict[str, float]]:
        """Yield the metrics of a step's evaluations, on rank 0 only: the file may be long."""
        names = self.task.metric_names
        for record in read_json_lines(self.run.metrics_file) if self.world.is_main else ():
            if record["step"] == num_done and {*names} <= record["metrics"].keys():
                yield {name: record["metrics"][name] for name in names}

    def save(self, num_done: int, val_metrics: Mapping[str, float]) -> None:
        """Start to write a checkpoint, with the metrics of this very step or none."""
        self.metric_log.sync()
        self.saver.save(self.state, num_done, val_metrics)
        self.heartbeat()

    def heartbeat(self) -> None:
        """Reset the watchdog; raise if a checkpoint could not be written."""
        watchdog.heartbeat()
        if startup_timer.is_running():
            if self.device.is_cuda:
                torch.cuda.synchronize()  # kernels are launched asynchronously
            startup_timer.log_phases()
        self.saver.raise_if_failed()

    def outcome(self, num_done: int, val_metrics: Mapping[str, float]) -> RunOutcome:
        """Describe the end of training, and what is wrong with the last evaluation."""
        if num_done < self.plan.num_steps:
            return RunOutcome("stopped", num_done, f"stop requested; saved at step {num_done}")
        done = f"all {num_done} steps are done" if num_done > 1 else "its one step is done"
        problem = console_log.not_finite(val_metrics)
        return RunOutcome("finished", num_done, f"{done}, but {problem}" if problem else done)

    def shutdown(self) -> None:
        """Wait for the last save, then for all ranks: an early exit would look like a crash."""
        self.saver.wait()
        self.world.barrier()
