"""The story of a run, in the order things happen, on every rank alike.

The step is the only clock: what happens at step t depends on (config, seed, t) and on the state
that a checkpoint holds. To resume is to load that state and to count from another number.
"""

import math
import time
from collections.abc import Mapping
from contextlib import closing

import torch

from data_sharding.errors import DataError
from data_sharding.loading.loader import iter_batches
from orchestrator.config.schema import Config
from orchestrator.run.exit_status import FatalRunError, RunOutcome, StepRequest
from orchestrator.run.rundir import RunDir
from orchestrator.training.context import TrainContext
from orchestrator.training.distributed.world import AsyncMaxReduce, World
from orchestrator.training.inputs.datasets import BadSampleCounter, check_bad_share
from orchestrator.training.inputs.lookahead import NUM_STEPS, Ahead, first_error
from orchestrator.training.monitoring.console_log import log_progress
from orchestrator.training.monitoring.metric_log import MetricLog
from orchestrator.training.monitoring.sample_log import log_sample_ids
from orchestrator.training.monitoring.throughput import ThroughputMeter
from orchestrator.training.state.train_state import TrainState
from orchestrator.training.step.train_step import clip_gradients
from orchestrator.training.stop_signal import StopSignal


def train(
    run: RunDir, config: Config, world: World, metrics: MetricLog, stop: StopSignal
) -> RunOutcome:
    """Train until the last step, or until the ranks agree to stop."""
    job = TrainContext.build(run, config, world, metrics)
    plan, start = job.plan, job.restore_or_init()
    if world.any(bool(stop)):
        return RunOutcome("stopped", start, "stopped before training began")

    # The micro-batches that this rank computes, in the order of the steps.
    micros = plan.micro_batches_of(world.rank)
    names = plan.micro_batches(world.rank, start)
    num_images = len(micros) * plan.micro_batch_size  # of this rank, a step
    workers, meter, bad = config.data.num_workers, ThroughputMeter(), BadSampleCounter()
    held = NUM_STEPS * len(micros)
    loaded = iter_batches(
        job.data.train, names, workers, pin_memory=job.device.is_cuda, num_held=held
    )
    ahead, asked = Ahead(loaded, held), 0
    # The loop counts finished steps. Step t is made with the rate, order, views and noise of t - 1.
    agreement, step, checked = AsyncMaxReduce(world), start, start
    with closing(loaded):  # also when it fails: what reads ahead ends before the interpreter does
        sent = job.device.prefetch_to_device(meter.wrap(iter(ahead)))
        batches = bad.watch(sent)  # counted when used: what is before it reads ahead
        if config.logging.log_sample_ids:
            batches = log_sample_ids(batches, names, run.samples_file(metrics.attempt, world.rank))
        for step in range(start + 1, plan.num_steps + 1):
            job.prepare_step(step - 1)
            learned = job.gradients.forward_backward(step - 1, micros, batches)
            grad_norm = _update(job.state, config, step)
            job.heartbeat()
            meter.end_step(num_images)

            asked = agreement.step(job.save_request(stop, ahead))
            stopping, last = asked >= StepRequest.GIVE_UP, step == plan.num_steps
            evaluating = plan.should_evaluate(step) and (last or not stopping)
            logging = last or step % config.logging.every_steps == 0
            saving = last or bool(asked) or plan.should_save(step)
            if logging or saving:
                figures, num_bad, num_seen = _reduce(learned, meter, bad, world)
                _check_loss(figures["train/loss"], first=checked + 1, last=step)
                # Of the first few steps of an attempt one bad sample may be more than the share.
                check_bad_share(
                    num_bad, max(num_seen, plan.num_train), config.data.max_bad_fraction
                )
                checked = step
            if logging:
                _log(job, metrics, step, figures | {"train/grad_norm": float(grad_norm)})

            pause_s = time.perf_counter()
            result = _evaluate(job, step) if evaluating else {}
            if saving:
                job.save(step, result)
            meter.exclude(time.perf_counter() - pause_s)
            if stopping:
                break

    bad.damaged.tell_number()
    agreement.close()
    job.shutdown()
    if asked == StepRequest.GIVE_UP:
        raise first_error(world, ahead.error)
    return _outcome(job, step)


def _outcome(job: TrainContext, step: int) -> RunOutcome:
    if step < job.plan.num_steps:
        return RunOutcome("stopped", step, f"asked to stop; saved at step {step}")
    return RunOutcome("finished", step, job.tell_end())


def _log(job: TrainContext, log: MetricLog, step: int, metrics: dict[str, float]) -> None:
    """Write the metrics of a step to the log, and the most telling of them to the console."""
    metrics |= {"train/lr": job.state.lr}
    metrics |= job.compute_metrics(step, metrics["perf/images_per_s"])
    log.log(step, metrics)
    log_progress(job.plan, step, metrics)


def _evaluate(job: TrainContext, step: int) -> dict[str, float]:
    """Judge a step; save it if the images cannot be read, which is no fault of its weights."""
    try:
        return job.evaluate(step)
    except DataError:
        job.save(step, {})
        job.shutdown()
        raise


def _update(state: TrainState, config: Config, step: int) -> torch.Tensor:
    """Clip, move the weights and their average; return the gradients' norm before clipping."""
    state.scaler.unscale_(state.optimizer)
    grad_norm = clip_gradients(state.model, config.recipe)
    state.update()
    if config.recipe.ema_decay:
        state.update_ema(step, config.recipe.ema_decay)
    return grad_norm


def _reduce(
    learned: Mapping[str, torch.Tensor], meter: ThroughputMeter, bad: BadSampleCounter, world: World
) -> tuple[dict[str, float], int, int]:
    """Return figures, and how many samples were bad and were seen in this attempt, over all ranks.

    What was learned is of this one step, not a mean since the last reading, so that it is the same
    whenever training was interrupted.
    """
    mine = {name: value.item() / world.size for name, value in learned.items()}
    mine |= meter.pop(world.size)
    parts = (*mine.values(), bad.num_bad, bad.num_seen)
    *figures, num_bad, num_seen = world.sum(torch.tensor(parts, dtype=torch.float64)).tolist()
    return dict(zip(mine, figures, strict=True)), int(num_bad), int(num_seen)


def _check_loss(loss: float, *, first: int, last: int) -> None:
    """End a run that has diverged; all ranks see the same loss and end alike."""
    if not math.isfinite(loss):
        raise FatalRunError(
            f"diverged: the loss became {loss} between steps {first} and {last}. Going on would "
            "train nothing. Lower recipe.optimizer.lr, lengthen the warm-up, or set "
            "recipe.clip_grad_norm."
        )
