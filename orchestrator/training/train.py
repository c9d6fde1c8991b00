"""Train a model: the story of a run in the order of time, the same on every rank.

The step is the only clock: what happens in a step depends on (config, seed, step) and on the state
that a checkpoint holds. To resume is to load that state and to start from another step.

`step` is 0-based; `num_done` = step + 1 steps are done after it. Logs, metrics and checkpoints are
numbered by the steps done.
"""

import time
from contextlib import closing, nullcontext

import torch

from data_sharding.rng import derive_key
from orchestrator.checkpoint.owner import claim
from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.config.schema import Config
from orchestrator.run.outcome import RunOutcome, StepRequest
from orchestrator.run.rundir import RunDir
from orchestrator.training.context import TrainContext
from orchestrator.training.distributed.world import AsyncMaxReduce, World
from orchestrator.training.inputs.datasets import Datasets
from orchestrator.training.inputs.device import Device
from orchestrator.training.inputs.lookahead import first_error
from orchestrator.training.monitoring import startup_timer
from orchestrator.training.monitoring.console_log import log_summary
from orchestrator.training.monitoring.metric_log import MetricLog
from orchestrator.training.optim.lr_schedule import make_lr_schedule
from orchestrator.training.state.async_saver import AsyncCheckpointer
from orchestrator.training.state.restore import restore
from orchestrator.training.state.train_state import TrainState
from orchestrator.training.step.diagonal_hessian import DiagonalHessian
from orchestrator.training.step.phases import Phases
from orchestrator.training.step.rank_times import RankTimesLog
from orchestrator.training.step.step_metrics import StepMetrics
from orchestrator.training.step.step_profiler import StepProfiler, steps_to_profile
from orchestrator.training.step.train_batches import TrainBatches
from orchestrator.training.step.train_step import TrainStep
from orchestrator.training.stop_signal import StopSignal
from orchestrator.training.task.linear_probe import freeze_backbone
from orchestrator.training.task.losses import make_objective
from orchestrator.training.task.model import build_model, check_step, model_cost
from orchestrator.training.task.warm_start import check_unchanged


def train(
    run: RunDir, config: Config, world: World, metric_log: MetricLog, stop_signal: StopSignal
) -> RunOutcome:
    """Train until the last step, or until the ranks agree to stop."""
    # ---------------------------------------------------------------- data
    datasets = Datasets.open(run, config, world)
    plan, device = datasets.plan, Device.create(config, world.device)
    startup_timer.mark("data")

    # ---------------------------------------------------------------- model, optimizer, schedule
    model, cost = _make_model(config, plan.num_classes, device)
    state = TrainState.create(model, config, world)  # the model, its EMA, optimizer, strategy ...
    task = make_objective(config.recipe, plan, world.device)  # the loss, the metrics
    store = CheckpointStore.for_run(run, config)
    context = TrainContext(
        *(run, config, world, metric_log, datasets, device, cost, state, task),
        train_step=TrainStep(state, task, config, plan, device, world),
        schedule=make_lr_schedule(state.optimizer, config.recipe, plan),
        phases=Phases(state, config.recipe.phases, plan),
        hessian=DiagonalHessian(state, task, datasets, device, world),
        store=store,
        saver=AsyncCheckpointer(store, config.checkpoint, is_main=world.is_main),
    )
    startup_timer.mark("model")

    # ---------------------------------------------------------------- resume or initialise
    world.check_on_main(lambda: claim(run, config))  # no other run may write to its checkpoints
    if state.strategy.needs_warm_up:
        context.train_step.warm_up()
    startup_timer.mark("warm-up")
    first_step = _resume_or_initialise(context)
    startup_timer.mark("checkpoint")
    log_summary(run.id, plan, cost, str(world.device), first_step, config.init_from)
    val_metrics: dict[str, float] = {}
    if first_step == 0:
        metric_log.log(0, cost)
    elif plan.should_evaluate(first_step):
        val_metrics = context.evaluate_restored(first_step)

    # ---------------------------------------------------------------- steps
    if world.any(bool(stop_signal)):
        return RunOutcome("stopped", first_step, "stopped before training began")
    return _train_steps(context, first_step, val_metrics, stop_signal)


def _make_model(
    config: Config, num_classes: int, device: Device
) -> tuple[torch.nn.Module, dict[str, float]]:
    """Build the model on the CPU, initialised from the seed; compute its cost."""
    torch.manual_seed(int(derive_key(config.seed, "init")[0]))
    model = build_model(config, num_classes)
    cost = model_cost(model, config)
    check_step(model, config)
    if config.recipe.linear_probe:
        freeze_backbone(model, num_classes)
    return model.to(memory_format=device.memory_format), cost


def _resume_or_initialise(context: TrainContext) -> int:
    """Load the weights to start from; return the number of steps done."""
    # Where the weights come from, by priority:
    # 1. The newest intact checkpoint of this run: an earlier attempt was stopped, preempted or
    #    killed. The whole state is restored, and training continues with the same bits.
    # 2. `init_from`: another run, a file or timm's, fetched when the run was created. The optimizer
    #    starts afresh, and so does the head if the classes are others.
    # 3. The random initialisation, which the model has already.
    run, config, world = context.run, context.config, context.world
    with context.store.open_latest() if world.is_main else nullcontext() as latest:
        num_done, files = latest or (0, None)
        if num_done := world.broadcast_object(num_done):
            restore(context.state, files, world)
        elif config.init_from:
            world.check_on_main(lambda: check_unchanged(run, config))
            num_classes, in_channels = context.plan.num_classes, config.data.in_channels
            context.state.initialise(run.init_file, num_classes, in_channels)
    context.phases.set_phase(max(0, num_done - 1))
    context.saver.resumed_from = num_done
    context.saver.abort_stale_uploads()
    return num_done


def _train_steps(
    context: TrainContext, first_step: int, val_metrics: dict[str, float], stop_signal: StopSignal
) -> RunOutcome:
    """Run the steps; log, evaluate, save and stop as planned or requested."""
    run, config, plan, world = context.run, context.config, context.plan, context.world
    attempt = context.metric_log.attempt
    batches = TrainBatches(
        *(context.datasets, config, context.device),
        rank=world.rank,
        first_step=first_step,
        samples_file=run.samples_file(attempt, world.rank),
    )
    profiled = steps_to_profile(config.profile, first_step, plan.num_steps)
    profiler = StepProfiler(profiled, run, attempt, world, context.train_step.timer, batches.meter)
    rank_times = RankTimesLog(context.train_step.timer, world, run, attempt)
    reducer = StepMetrics(batches, rank_times, config, plan, world, first_step)
    control, request, num_done = AsyncMaxReduce(world), StepRequest.NOTHING, first_step
    with closing(batches), profiler:
        for step in range(first_step, plan.num_steps):
            # -------------------------------------------------------- the step
            profiler.prepare_step(step)
            context.schedule.step_update(step)
            context.phases.prepare_step(step)
            context.state.strategy.prepare_step(step)
            context.hessian.maybe_update(step)
            step_metrics = context.train_step.forward_backward(step, batches)
            num_done = step + 1
            grad_norm = _optimizer_step(context.state, config, num_done)
            profiler.end_step(num_done)
            context.heartbeat()
            batches.meter.end_step(plan.accumulation_steps * plan.images_per_pass)

            # -------------------------------------------------------- what follows, on all ranks
            request = StepRequest(control.step(context.request(stop_signal, batches.error)))
            is_last = num_done == plan.num_steps
            stop_requested = request >= StepRequest.GIVE_UP
            should_evaluate = plan.should_evaluate(num_done) and (is_last or not stop_requested)
            should_log = is_last or num_done % config.logging.every_steps == 0
            should_save = is_last or request > StepRequest.NOTHING or plan.should_save(num_done)

            # -------------------------------------------------------- log
            if should_log or should_save:  # raises if the run has diverged: that is not saved
                metrics = reducer.reduce(step_metrics, num_done)
            if should_log:
                context.log_step(num_done, metrics | {"train/grad_norm": float(grad_norm)})

            # -------------------------------------------------------- evaluate, save, stop
            pause_s = time.perf_counter()
            val_metrics = context.evaluate(num_done) if should_evaluate else {}
            if should_save:
                context.save(num_done, val_metrics)
            batches.meter.exclude(time.perf_counter() - pause_s)
            if stop_requested:
                break

    # ---------------------------------------------------------------- end
    batches.samples.log_damaged()
    control.close()
    context.shutdown()
    if request == StepRequest.GIVE_UP:
        raise first_error(world, batches.error)
    return context.outcome(num_done, val_metrics)


def _optimizer_step(state: TrainState, config: Config, num_done: int) -> torch.Tensor:
    """Clip the gradients, update weights and EMA; return the gradients' norm before clipping."""
    state.scaler.unscale_(state.optimizer)
    grad_norm = state.strategy.clip_gradients(state.model, config.recipe)
    state.update()
    if config.recipe.ema_decay:
        state.update_ema(num_done, config.recipe.ema_decay)
    return grad_norm
