"""What the loop works with: the data, the network and all that goes with it, on one rank."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Self

import torch
from timm.scheduler.scheduler import Scheduler

from data_sharding.rng import derive_key
from orchestrator.checkpoint.owner import claim
from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.config.schema import Config
from orchestrator.run.exit_status import FatalRunError, StepRequest
from orchestrator.run.plan import Plan
from orchestrator.run.rundir import RunDir, RunError, read_json_lines
from orchestrator.training.distributed.world import World
from orchestrator.training.inputs.datasets import Datasets
from orchestrator.training.inputs.device import Device
from orchestrator.training.inputs.lookahead import Ahead
from orchestrator.training.monitoring import console_log, startup_timer, watchdog
from orchestrator.training.monitoring.metric_log import MetricLog
from orchestrator.training.monitoring.predictions import save_predictions
from orchestrator.training.monitoring.throughput import compute_figures
from orchestrator.training.optim.lr_schedule import make_lr_schedule
from orchestrator.training.state.async_saver import AsyncCheckpointer
from orchestrator.training.state.restore import restore
from orchestrator.training.state.train_state import TrainState
from orchestrator.training.step.diagonal_hessian import DiagonalHessian
from orchestrator.training.step.evaluate import evaluate
from orchestrator.training.step.phases import Phases, supports_phases
from orchestrator.training.step.train_step import TrainStep, wrap_ddp
from orchestrator.training.stop_signal import StopSignal
from orchestrator.training.task.linear_probe import freeze_backbone
from orchestrator.training.task.losses import Task, make_objective
from orchestrator.training.task.model import build_model, check_step, model_cost
from orchestrator.training.task.warm_start import check_unchanged

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainContext:
    """The parts of a run on this rank. `metrics` writes on rank 0 only."""

    run: RunDir
    config: Config
    world: World
    metrics: MetricLog
    data: Datasets
    device: Device
    cost: Mapping[str, float]
    state: TrainState
    objective: Task
    gradients: TrainStep
    schedule: Scheduler
    stages: Phases
    curvature: DiagonalHessian
    store: CheckpointStore
    saver: AsyncCheckpointer

    @classmethod
    def build(cls, run: RunDir, config: Config, world: World, metrics: MetricLog) -> Self:
        """Build everything, the same on every rank, as it is at step 0.

        Raises:
            ConfigError, DataError: something that the config names is not there or does not fit.
        """
        data = Datasets.open(run, config, world.size)
        startup_timer.done("data")
        device = Device.create(config, world.device)
        torch.manual_seed(int(derive_key(config.seed, "init")[0]))
        network = build_model(config, data.plan.num_classes)
        cost = model_cost(network, config)
        check_step(network, config)
        if config.recipe.linear_probe:
            freeze_backbone(network, data.plan.num_classes)
        network = network.to(world.device).to(memory_format=device.memory_format)
        state = TrainState.create(network, config, world)
        objective = make_objective(config.recipe)
        store = CheckpointStore.for_run(run, config)
        return cls(
            run=run,
            config=config,
            world=world,
            metrics=metrics,
            data=data,
            device=device,
            cost=cost,
            state=state,
            objective=objective,
            gradients=TrainStep(
                wrap_ddp(
                    network, has_unused=bool(config.recipe.phases) and supports_phases(network)
                ),
                objective,
                state.scaler,
                config,
                data.plan,
                device,
                world,
            ),
            schedule=make_lr_schedule(state.optimizer, config.recipe, data.plan),
            stages=Phases(state, config.recipe.phases, data.plan),
            curvature=DiagonalHessian(state, objective, data, device, world),
            store=store,
            saver=AsyncCheckpointer(store, config.checkpoint, is_main=world.is_main),
        )

    @property
    def plan(self) -> Plan:
        return self.data.plan

    def restore_or_init(self) -> int:
        """Load what an earlier attempt left, and return the step it had reached; 0 for none.

        Rank 0 reads the newest checkpoint that is whole, and gives the others what is in it.
        """
        startup_timer.done("network")
        self._let_first(claim)
        if self.world.size > 2:  # the sum of two has one order
            self.gradients.warm_up()
        startup_timer.done("warm-up")
        with self.store.open_latest() if self.world.is_main else nullcontext() as newest:
            step, parts = newest or (0, None)
            if step := self.world.broadcast_int(step):
                restore(self.state, parts, self.world)
            elif self.config.init_from:
                self._let_first(check_unchanged)
                channels = self.config.data.in_channels
                self.state.initialise(self.run.init_file, self.plan.num_classes, channels)
        self.stages.set_phase(max(0, step - 1))
        startup_timer.done("checkpoint")
        self.saver.resumed_from = step
        self.saver.abort_stale_uploads()
        device, begun_with = str(self.world.device), self.config.init_from
        console_log.log_summary(self.run.id, self.plan, self.cost, device, step, begun_with)
        if step == 0:
            self.metrics.log(0, self.cost)
        elif self.plan.should_evaluate(step):
            self._judge_saved(step)
        return step

    def _let_first(self, check: Callable[[RunDir, Config], None]) -> None:
        """Let rank 0 check something; what it refuses ends every rank alike."""
        refused = None
        if self.world.is_main:
            try:
                check(self.run, self.config)
            except RunError as error:
                refused = str(error)
        if refused := self.world.broadcast_object(refused):
            raise FatalRunError(refused)

    def prepare_step(self, step: int) -> None:
        """Set what depends on the step alone; steps are counted from 0 here."""
        self.schedule.step_update(step)
        self.stages.prepare_step(step)
        self.curvature.maybe_update(step)

    def evaluate(self, step: int) -> dict[str, float]:
        """Judge the weights of a step on the validation split."""
        result, predictions = evaluate(
            self.state.eval_model,
            self.objective,
            self.data.val,
            self.config,
            self.world,
            self.device,
            with_predictions=self.config.logging.plots and step == self.plan.num_steps,
        )
        if self.world.is_main and predictions is not None:
            save_predictions(self.run, predictions)
        self.metrics.log(step, result)
        console_log.tell_evaluation(self.plan, step, result)
        return result

    def compute_metrics(self, step: int, images_per_s: float) -> dict[str, float]:
        """Return what training has taken until a step; see `throughput.compute_figures`."""
        peak, sizes = self.config.runtime.peak_tflops_per_device, self.data.train.sizes
        all_peaks = peak * self.world.size if peak else None
        num_images = sizes.num_of_last(step) * self.plan.global_batch_size
        images_per_s *= (sizes(step - 1) / sizes.last) ** 2
        return compute_figures(self.cost, num_images, images_per_s, all_peaks)

    def save(self, step: int, result: Mapping[str, float]) -> None:
        """Begin to write a checkpoint; `result` is an evaluation of this very step, or empty."""
        self.metrics.sync()
        self.saver.save(self.state, step, result)
        self.heartbeat()

    def save_request(self, stop: StopSignal, ahead: Ahead) -> StepRequest:
        """Return what this rank would have done after the next step."""
        if stop:
            return StepRequest.STOP
        if ahead.error:
            return StepRequest.GIVE_UP
        return StepRequest.SAVE if self.saver.is_due() else StepRequest.NOTHING

    def heartbeat(self) -> None:
        """Say that this rank has got somewhere, and end it if a checkpoint could not be written."""
        watchdog.heartbeat()
        if startup_timer.is_under_way():
            if self.device.is_cuda:
                torch.cuda.synchronize()  # else the step would only have been asked for
            startup_timer.tell()
        self.saver.raise_if_failed()

    def tell_end(self) -> str:
        """Return that all is done, and what is wrong with the last evaluation."""
        num_steps = self.plan.num_steps
        done = f"all {num_steps} steps are done" if num_steps > 1 else "its one step is done"
        *_, last = ({}, *self._evaluations(num_steps))
        return f"{done}, but {wrong}" if (wrong := console_log.not_finite(last)) else done

    def shutdown(self) -> None:
        """Leave together: a rank that left while another still saves would look like a failure."""
        self.saver.wait()
        self.world.barrier()

    def _judge_saved(self, step: int) -> None:
        """Evaluate a step that an attempt was asked to stop at before it could.

        Its checkpoint is told, which would never be the best otherwise.
        """
        *_, known = (None, *self._evaluations(step))
        result = self.world.broadcast_object(known) or self.evaluate(step)
        if self.world.is_main and not self.store.manifest(step).metrics:
            self.store.set_metrics(step, result)

    def _evaluations(self, step: int) -> Iterator[dict[str, float]]:
        """Yield the figures of a step's evaluations, on rank 0: the file may be long."""
        if not self.world.is_main:
            return
        for record in read_json_lines(self.run.metrics_file):
            if record["step"] == step and self.objective.metric_names[0] in record["metrics"]:
                yield {name: record["metrics"][name] for name in self.objective.metric_names}
