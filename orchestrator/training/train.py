"""The story of a run, in the order things happen, on every rank alike.

The step is the only clock: what happens at step t depends on (config, seed, t) and on the state
that a checkpoint holds. To resume is to load that state and to count from another number.
"""

import math
import time
from collections.abc import Mapping
from contextlib import closing

import torch

from data_sharding.loader import load
from data_sharding.manifest import DataError
from orchestrator.rundir import RunDir
from orchestrator.schema import Config
from orchestrator.training.ahead import NUM_STEPS, Ahead, first_error
from orchestrator.training.audit import audit
from orchestrator.training.datasets import BadSamples, check_bad_share
from orchestrator.training.gradients import clip
from orchestrator.training.job import Job
from orchestrator.training.meter import Meter
from orchestrator.training.metrics import MetricLog
from orchestrator.training.report import tell_progress
from orchestrator.training.state import TrainState
from orchestrator.training.verdict import NeverRestartError, StopRequest, Verdict, Wish
from orchestrator.training.world import Agreement, World


def train(
    run: RunDir, config: Config, world: World, metrics: MetricLog, stop: StopRequest
) -> Verdict:
    """Train until the last step, or until the ranks agree to stop."""
    job = Job.assemble(run, config, world, metrics)
    plan, start = job.plan, job.begin()
    if world.any(bool(stop)):
        return Verdict("stopped", start, "stopped before training began")

    # The micro-batches that this rank computes, in the order of the steps.
    micros = plan.micro_batches_of(world.rank)
    names = plan.micro_batches(world.rank, start)
    num_images = len(micros) * plan.micro_batch_size  # of this rank, a step
    workers, meter, bad = config.data.num_workers, Meter(), BadSamples()
    held = NUM_STEPS * len(micros)
    loaded = load(job.data.train, names, workers, pin_memory=job.device.is_cuda, num_held=held)
    ahead, asked = Ahead(loaded, held), 0
    # The loop counts finished steps. Step t is made with the rate, order, views and noise of t - 1.
    agreement, step, checked = Agreement(world), start, start
    with closing(loaded):  # also when it fails: what reads ahead ends before the interpreter does
        batches = bad.watch(job.device.feed(meter.watch(iter(ahead))))  # which read ahead
        if config.logging.sample_ids:
            batches = audit(batches, names, run.samples_file(metrics.attempt, world.rank))
        for step in range(start + 1, plan.num_steps + 1):
            job.begin_step(step - 1)
            learned = job.gradients.run(step - 1, micros, batches)
            grad_norm = _update(job.state, config, step)
            job.live()
            meter.step_done(num_images)

            asked = agreement.exchange(job.wish(stop, ahead))
            stopping, last = asked >= Wish.GIVE_UP, step == plan.num_steps
            evaluating = plan.evaluates_at(step) and (last or not stopping)
            logging = last or step % config.logging.every_steps == 0
            saving = last or bool(asked) or plan.saves_at(step)
            if logging or saving:
                figures, num_bad, num_seen = _reduce(learned, meter, bad, world)
                _check_loss(figures["train/loss"], first=checked + 1, last=step)
                # Of the first few steps of an attempt one bad sample may be more than the share.
                check_bad_share(num_bad, max(num_seen, plan.num_train), config.data.max_bad_share)
                checked = step
            if logging:
                lr = job.state.lr
                figures |= {"train/lr": lr, "train/grad_norm": float(grad_norm)}
                figures |= job.compute_figures(step, figures["perf/images_per_s"])
                metrics.log(step, figures)
                tell_progress(plan, step, figures)

            pause_s = time.perf_counter()
            result = _evaluate(job, step) if evaluating else {}
            if saving:
                job.save(step, result)
            meter.skip(time.perf_counter() - pause_s)
            if stopping:
                break

    bad.damaged.tell_number()
    agreement.close()
    job.part()
    if asked == Wish.GIVE_UP:
        raise first_error(world, ahead.error)
    if step < plan.num_steps:
        return Verdict("stopped", step, f"asked to stop; saved at step {step}")
    return Verdict("finished", step, job.tell_end())


def _evaluate(job: Job, step: int) -> dict[str, float]:
    """Judge a step; save it if the images cannot be read, which is no fault of its weights."""
    try:
        return job.evaluate(step)
    except DataError:
        job.save(step, {})
        job.part()
        raise


def _update(state: TrainState, config: Config, step: int) -> torch.Tensor:
    """Clip, move the weights and their average; return the gradients' norm before clipping."""
    state.scaler.unscale_(state.optimizer)
    grad_norm = clip(state.network, config.recipe)
    state.update()
    if config.recipe.ema_decay:
        state.average(step, config.recipe.ema_decay)
    return grad_norm


def _reduce(
    learned: Mapping[str, torch.Tensor], meter: Meter, bad: BadSamples, world: World
) -> tuple[dict[str, float], int, int]:
    """Return figures, and how many samples were bad and were seen in this attempt, over all ranks.

    What was learned is of this one step, not a mean since the last reading, so that it is the same
    whenever training was interrupted.
    """
    mine = {name: value.item() / world.size for name, value in learned.items()}
    mine |= meter.read(world.size)
    parts = (*mine.values(), bad.num_bad, bad.num_seen)
    *figures, num_bad, num_seen = world.sum(torch.tensor(parts, dtype=torch.float64)).tolist()
    return dict(zip(mine, figures, strict=True)), int(num_bad), int(num_seen)


def _check_loss(loss: float, *, first: int, last: int) -> None:
    """End a run that has diverged; all ranks see the same loss and end alike."""
    if not math.isfinite(loss):
        raise NeverRestartError(
            f"diverged: the loss became {loss} between steps {first} and {last}. Going on would "
            "train nothing. Lower recipe.optimizer.lr, lengthen the warm-up, or set "
            "recipe.clip_grad_norm."
        )
