"""The attempt of ranks that another launcher has started, for example torchrun.

The job script and the local launcher begin an attempt before they start its ranks. Here the ranks
meet first; then rank 0 takes the run's lock, records the attempt, and sends its number to the
others. At the end rank 0 records how the attempt has ended. All of it is written to the run
directory by rank 0, and to the logs of the ranks by each.
"""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

from data_sharding.errors import DataError, UnavailableError
from orchestrator.config.key_names import explain
from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config
from orchestrator.redact import one_line, redact_urls
from orchestrator.run.notify import notify_end
from orchestrator.run.outcome import CRASHED, ExitCode, read_run_state, record_lost_attempts
from orchestrator.run.plan import make_plan
from orchestrator.run.rundir import RunDir, RunError
from orchestrator.run.train_data import read_data
from orchestrator.training.distributed.world import World
from orchestrator.training.monitoring.output_copy import copy_output

_LOCK_WAIT_S = 10.0  # a rank 0 that was just killed may be ending on another node
_LOST = "a rank was killed, or its machine was lost"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refusal:
    """The reason why no attempt begins, and the exit code of every rank."""

    exit_code: int
    reason: str


class NotBegunError(Exception):
    """Rank 0 has begun no attempt, and has logged why."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


@contextmanager
def external_attempt(run: RunDir, config: Config, world: World) -> Iterator[int]:
    """Begin an attempt on all ranks, copy their output to its logs, and record its end.

    Raises:
        NotBegunError: the run is finished, running or stopped, or its config does not fit.
    """
    with ExitStack() as lock:
        nodes = ",".join(dict.fromkeys(world.gather_objects(socket.gethostname())))
        begun = _begin(run, config, world.size, nodes, lock) if world.is_main else None
        begun = world.broadcast_object(begun)
        if isinstance(begun, Refusal):
            if world.is_main:
                level = logging.ERROR if begun.exit_code else logging.INFO
                log.log(level, "%s", begun.reason)
            raise NotBegunError(begun.exit_code)
        copy_output(run.log_dir(begun) / f"rank-{world.rank:05d}.log")
        with _record_end(run, config, begun, lock) if world.is_main else nullcontext():
            yield begun


def _begin(
    run: RunDir, config: Config, world_size: int, nodes: str, lock: ExitStack
) -> int | Refusal:
    """Lock the run and record an attempt, whose number is returned; or the reason against it."""
    try:
        lock.enter_context(run.lock(_LOCK_WAIT_S))
        for lost in record_lost_attempts(run, lambda *_: {"why": _LOST}):
            notify_end(run, config.notify, lost, "restart", _LOST, log=log.warning)
        if refusal := _nothing_to_do(run):
            return refusal
        plan = make_plan(config, world_size, *read_data(config))
        attempt = run.begin_attempt(
            launcher="torchrun" if "TORCHELASTIC_RUN_ID" in os.environ else "external",
            world_size=world_size,
            num_steps=plan.num_steps,
            nodes=nodes,
        )
        run.log_dir(attempt).mkdir(parents=True, exist_ok=True)
    except (RunError, UnavailableError, OSError) as error:
        return Refusal(CRASHED, explain(error))
    except (ConfigError, DataError) as error:
        return Refusal(ExitCode.FAILED_PERMANENTLY, explain(error))
    return attempt


def _nothing_to_do(run: RunDir) -> Refusal | None:
    """Return the reason why no attempt is needed, if there is one."""
    if run.is_finished:
        return Refusal(ExitCode.FINISHED, f"{run.path} is finished")
    if run.stop_file.exists():  # the launcher may restart what somebody has stopped
        reason = f"{run.stop_file} exists: remove it to continue the run"
        return Refusal(ExitCode.STOPPED, reason)
    state = read_run_state(run)
    if state.state == "failed_permanently" and _restart_count() > 0:
        return Refusal(ExitCode.FAILED_PERMANENTLY, f"not restarted: {state.reason}")
    return None


@contextmanager
def _record_end(run: RunDir, config: Config, attempt: int, lock: ExitStack) -> Iterator[None]:
    """Record the end of an attempt by what the ranks agreed on, or by this rank's error."""
    reason = "ended without an outcome"
    try:
        yield
    except BaseException as error:
        reason = one_line(redact_urls(str(error.__cause__ or error))) or repr(error)
        raise
    finally:
        outcome = run.read_json(run.outcome_file) or {}
        is_agreed = outcome.get("attempt") == attempt
        code = ExitCode[outcome["outcome"].upper()] if is_agreed else CRASHED
        facts = run.attempt_outcome(attempt) or {"why": reason}
        run.end_attempt(attempt, exit_code=code, **facts)
        lock.close()  # the launcher may restart the ranks meanwhile
        restarts = code == CRASHED and _restart_count() < _max_restarts()
        next_action = "restart" if restarts else code
        notify_end(run, config.notify, attempt, next_action, facts["why"], log=log.warning)


def _restart_count() -> int:
    """Count the restarts of the ranks by torchrun."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _max_restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
