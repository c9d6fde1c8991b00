"""What the loop works with: the data, the network and all that goes with it, on one rank."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Self

import torch
from timm.scheduler.scheduler import Scheduler

from data_sharding.counter import derive
from orchestrator.plan import Plan
from orchestrator.rundir import RunDir, RunError, read_json_lines
from orchestrator.schema import Config
from orchestrator.training import report, startup, watchdog
from orchestrator.training.ahead import Ahead
from orchestrator.training.answers import write_answers
from orchestrator.training.checkpoint import CheckpointStore
from orchestrator.training.curvature import Curvature
from orchestrator.training.datasets import Datasets
from orchestrator.training.device import Device
from orchestrator.training.evaluate import evaluate
from orchestrator.training.gradients import GradientStep, wrap
from orchestrator.training.initialise import check_unchanged
from orchestrator.training.meter import compute_figures
from orchestrator.training.metrics import MetricLog
from orchestrator.training.network import build_network, check_step, count_cost
from orchestrator.training.objectives import Objective, make_objective
from orchestrator.training.owner import claim
from orchestrator.training.probe import freeze_all_but_the_head
from orchestrator.training.restore import restore
from orchestrator.training.saver import Saver
from orchestrator.training.schedule import make_schedule
from orchestrator.training.stages import Stages, has_stages
from orchestrator.training.state import TrainState
from orchestrator.training.verdict import NeverRestartError, StopRequest, Wish
from orchestrator.training.world import World

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """The parts of a run on this rank. `metrics` writes on rank 0 only."""

    run: RunDir
    config: Config
    world: World
    metrics: MetricLog
    data: Datasets
    device: Device
    cost: Mapping[str, float]
    state: TrainState
    objective: Objective
    gradients: GradientStep
    schedule: Scheduler
    stages: Stages
    curvature: Curvature
    store: CheckpointStore
    saver: Saver

    @classmethod
    def assemble(cls, run: RunDir, config: Config, world: World, metrics: MetricLog) -> Self:
        """Build everything, the same on every rank, as it is at step 0.

        Raises:
            ConfigError, DataError: something that the config names is not there or does not fit.
        """
        data = Datasets.open(run, config, world.size)
        startup.done("data")
        device = Device.create(config, world.device)
        torch.manual_seed(int(derive(config.seed, "init")[0]))
        network = build_network(config, data.plan.num_classes)
        cost = count_cost(network, config)
        check_step(network, config)
        if config.recipe.probe:
            freeze_all_but_the_head(network, data.plan.num_classes)
        network = network.to(world.device).to(memory_format=device.memory_format)
        state = TrainState.create(network, config, world)
        objective = make_objective(config.recipe)
        store = CheckpointStore.of(run, config)
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
            gradients=GradientStep(
                wrap(network, in_stages=bool(config.recipe.stages) and has_stages(network)),
                objective,
                state.scaler,
                config,
                data.plan,
                device,
                world,
            ),
            schedule=make_schedule(state.optimizer, config.recipe, data.plan),
            stages=Stages(state, config.recipe.stages, data.plan),
            curvature=Curvature(state, objective, data, device, world),
            store=store,
            saver=Saver(store, config.checkpoint),
        )

    @property
    def plan(self) -> Plan:
        return self.data.plan

    def begin(self) -> int:
        """Load what an earlier attempt left, and return the step it had reached; 0 for none.

        Rank 0 reads the newest checkpoint that is whole, and gives the others what is in it.
        """
        startup.done("network")
        self._let_first(claim)
        if self.world.size > 2:  # the sum of two has one order
            self.gradients.warm_up()
        startup.done("warm-up")
        with self.store.open_newest() if self.world.is_first else nullcontext() as newest:
            step, parts = newest or (0, None)
            if step := self.world.from_first(step):
                restore(self.state, parts, self.world)
            elif self.config.init_from:
                self._let_first(check_unchanged)
                channels = self.config.data.channels
                self.state.initialise(self.run.init_file, self.plan.num_classes, channels)
        self.stages.show(max(0, step - 1))
        startup.done("checkpoint")
        self.saver.resumed_from = step
        if self.world.is_first:
            self.saver.clean_up()
        device, begun_with = str(self.world.device), self.config.init_from
        report.tell_start(self.run.id, self.plan, self.cost, device, step, begun_with)
        if step == 0:
            self.metrics.log(0, self.cost)
        elif self.plan.evaluates_at(step):
            self._judge_saved(step)
        return step

    def _let_first(self, check: Callable[[RunDir, Config], None]) -> None:
        """Let rank 0 check something; what it refuses ends every rank alike."""
        refused = None
        if self.world.is_first:
            try:
                check(self.run, self.config)
            except RunError as error:
                refused = str(error)
        if refused := self.world.object_from_first(refused):
            raise NeverRestartError(refused)

    def begin_step(self, step: int) -> None:
        """Set what depends on the step alone; steps are counted from 0 here."""
        self.schedule.step_update(step)
        self.stages.begin(step)
        self.curvature.begin(step)

    def evaluate(self, step: int) -> dict[str, float]:
        """Judge the weights of a step on the validation split."""
        result, answers = evaluate(
            self.state.evaluated,
            self.objective,
            self.data.val,
            self.config,
            self.world,
            self.device,
            with_answers=self.config.logging.pictures and step == self.plan.num_steps,
        )
        if self.world.is_first and answers is not None:
            write_answers(self.run, answers)
        self.metrics.log(step, result)
        report.tell_evaluation(self.plan, step, result)
        return result

    def compute_figures(self, step: int, images_per_s: float) -> dict[str, float]:
        """Return what training has taken until a step; see meter.compute_figures."""
        peak, sizes = self.config.cluster.peak_tflops, self.data.train.sizes
        all_peaks = peak * self.world.size if peak else None
        num_images = sizes.num_of_last(step) * self.plan.global_batch_size
        images_per_s *= (sizes(step - 1) / sizes.last) ** 2
        return compute_figures(self.cost, num_images, images_per_s, all_peaks)

    def save(self, step: int, result: Mapping[str, float]) -> None:
        """Begin to write a checkpoint; `result` is an evaluation of this very step, or empty."""
        if self.world.is_first:
            self.metrics.sync()
            self.saver.save(self.state, step, result)
        else:
            deque(self.state.slots(), maxlen=0)  # which rank 0 is handed meanwhile
        self.live()

    def wish(self, stop: StopRequest, ahead: Ahead) -> Wish:
        """Return what this rank would have done after the next step."""
        if stop:
            return Wish.STOP
        if ahead.error:
            return Wish.GIVE_UP
        return Wish.SAVE if self.world.is_first and self.saver.is_due() else Wish.NOTHING

    def live(self) -> None:
        """Say that this rank has got somewhere, and end it if a checkpoint could not be written."""
        watchdog.alive()
        if startup.is_under_way():
            if self.device.is_cuda:
                torch.cuda.synchronize()  # else the step would only have been asked for
            startup.tell()
        self.saver.check()

    def tell_end(self) -> str:
        """Return that all is done, and what is wrong with the last evaluation."""
        num_steps = self.plan.num_steps
        done = f"all {num_steps} steps are done" if num_steps > 1 else "its one step is done"
        *_, last = ({}, *self._evaluations(num_steps))
        return f"{done}, but {wrong}" if (wrong := report.not_finite(last)) else done

    def part(self) -> None:
        """Leave together: a rank that left while another still saves would look like a failure."""
        self.saver.finish()
        self.world.wait_for_all()

    def _judge_saved(self, step: int) -> None:
        """Evaluate a step that an attempt was asked to stop at before it could.

        Its checkpoint is told, which would never be the best otherwise.
        """
        *_, known = (None, *self._evaluations(step))
        result = self.world.object_from_first(known) or self.evaluate(step)
        if self.world.is_first and not self.store.manifest(step).metrics:
            self.store.note_metrics(step, result)

    def _evaluations(self, step: int) -> Iterator[dict[str, float]]:
        """Yield the figures of a step's evaluations, on rank 0: the file may be long."""
        if not self.world.is_first:
            return
        for record in read_json_lines(self.run.metrics_file):
            if record["step"] == step and self.objective.figures[0] in record["metrics"]:
                yield {name: record["metrics"][name] for name in self.objective.figures}
