"""`tahoe doctor`: find what would fail in a run before its job has waited for days."""

from collections.abc import Callable, Iterator, Sequence

from rich.text import Text

from data_sharding.errors import UserError
from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config
from orchestrator.console import make_console
from orchestrator.jobs import trial_jobs
from orchestrator.launch.checks.data_check import check_data_matches_config
from orchestrator.launch.checks.model_cost import ModelCost, model_cost
from orchestrator.launch.compose import compose
from orchestrator.launch.create_run import make_plan_for
from orchestrator.launch.torch_subprocess import TorchWorkerError
from orchestrator.preflight import local_checks
from orchestrator.preflight.local_checks import CheckResult
from orchestrator.preflight.node_checks import check_nodes
from orchestrator.run.plan import Plan
from slurm.errors import SlurmError

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_ERRORS = (UserError, SlurmError)


def print_result(result: CheckResult) -> None:
    """Print a line for a result."""
    status = Text(f"{result.status:5}", style=_STYLES[result.status])
    make_console().print(status + Text(f"{result.name:16}{result.message}"))


def run_checks(overrides: Sequence[str], *, nodes: bool) -> Iterator[CheckResult]:
    """Check a config; yield each result as it comes."""
    yield from local_checks.check_versions()
    try:
        config = _compose_one(overrides)
    except ConfigError as error:
        yield CheckResult("fail", "config", str(error))
        yield _not_checked("all else", "there is no config")
        return
    yield CheckResult("ok", "config", f"{config.model.name} on {config.data.name}")
    data = _run_check("data", lambda: local_checks.check_data(config))
    yield data
    cost = None
    if data.status != "ok":
        yield _not_checked("plan, network", "the data cannot be read")
    else:
        try:
            plan = make_plan_for(config)
            check_data_matches_config(config, overrides)
        except _ERRORS as error:
            yield CheckResult("fail", "plan", str(error))
            yield _not_checked("network", "there is no plan")
        else:
            yield CheckResult("ok", "plan", "; ".join(plan.summary_lines()))
            network, cost = _check_network(config, plan)
            yield network
    yield _run_check("run directory", lambda: local_checks.check_run_dir(config))
    yield local_checks.check_disk(config, cost)
    yield _check_mlflow(config)
    if config.launcher.name == "slurm":
        yield from _check_jobs(config, cost, nodes=nodes)
        return
    yield _no_scheduler_needed()
    if data.status == "ok":
        yield from local_checks.check_cache_space(config)
    if nodes:
        yield CheckResult("fail", "nodes", "--on-nodes needs Slurm: run it on a login node")


def _run_check(name: str, check: Callable[[], str]) -> CheckResult:
    try:
        return CheckResult("ok", name, check())
    except _ERRORS as error:
        return CheckResult("fail", name, str(error))


def _not_checked(name: str, why: str) -> CheckResult:
    return CheckResult("warn", name, f"not checked: {why}")


def _compose_one(overrides: Sequence[str]) -> Config:
    """Compose the config as `tahoe submit` would, or as `tahoe train` without a scheduler."""
    for_cluster = any(override.startswith(("slurm=", "slurm.")) for override in overrides)
    if for_cluster or (trial_jobs.is_installed() and not trial_jobs.why_unavailable()):
        overrides = ["launcher=slurm", *overrides]
    points = compose(overrides)
    if len(points) != 1:
        raise ConfigError(
            "`tahoe doctor` checks one config, and this is a sweep", hint="Leave out -m."
        )
    return points[0].config


def _check_network(config: Config, plan: Plan) -> tuple[CheckResult, ModelCost | None]:
    try:
        cost = model_cost(config, plan)
    except TorchWorkerError as error:
        return CheckResult("warn", "network", f"its cost is unknown: {error}"), None
    except ConfigError as error:
        return CheckResult("fail", "network", str(error)), None
    return CheckResult("ok", "network", str(cost)), cost


def _check_mlflow(config: Config) -> CheckResult:
    if not config.tracking.enabled:
        return CheckResult("ok", "MLflow", "not used: tracking=none")
    from orchestrator.tracking.mlflow_store.connectivity import check_connection

    uri, experiment = config.tracking.uri, config.tracking.experiment
    return _run_check("MLflow", lambda: check_connection(uri, experiment))


def _no_scheduler_needed() -> CheckResult:
    message = "not asked: `tahoe train` runs on this machine"
    if trial_jobs.is_installed() and (why := trial_jobs.why_unavailable()):
        return CheckResult("warn", "Slurm", f"{message}. {why}")
    return CheckResult("ok", "Slurm", message)


def _check_jobs(config: Config, cost: ModelCost | None, *, nodes: bool) -> Iterator[CheckResult]:
    accepted = _run_check("Slurm", lambda: trial_jobs.test_submission(config))
    yield accepted
    if nodes and accepted.status != "ok":
        yield _not_checked("nodes", "Slurm does not take the job")
    elif nodes:
        try:
            yield from check_nodes(config, cost)
        except _ERRORS as error:
            yield CheckResult("fail", "nodes", str(error))
