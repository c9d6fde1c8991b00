"""`tahoe doctor`: what can go wrong with a run, found before its job has waited for days."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config
from orchestrator.json_output import strict_json
from orchestrator.launch.checks.data_check import check_data_matches_config
from orchestrator.launch.checks.model_cost import ModelCost, model_cost
from orchestrator.launch.compose import compose
from orchestrator.launch.create_run import make_plan_for
from orchestrator.launch.torch_subprocess import TorchWorkerError
from orchestrator.preflight import local_checks
from orchestrator.preflight.check_result import CheckResult, all_passed, run_check, show
from orchestrator.preflight.node_checks import check_nodes
from orchestrator.run.plan import Plan
from slurm import client


def run_checks(overrides: Sequence[str], *, nodes: bool, as_json: bool) -> int:
    """Print what is found of a config; return 0 if nothing has failed, else 1."""
    found: list[CheckResult] = []

    def kept() -> Iterator[CheckResult]:
        for one in _checks(overrides, nodes=nodes):
            found.append(one)
            yield one

    if as_json:
        print(strict_json([asdict(one) for one in kept()]))
    else:
        show(kept())
    return 0 if all_passed(found) else 1


def _checks(overrides: Sequence[str], *, nodes: bool) -> Iterator[CheckResult]:
    yield from local_checks.check_versions()
    try:
        config = _config(overrides)
    except ConfigError as error:
        yield CheckResult("fail", "config", f"{error}")
        yield _not_checked("all else", "there is no config")
        return
    yield CheckResult("ok", "config", f"{config.model.name} on {config.data.name}")
    data = run_check("data", lambda: local_checks.check_data(config), local_checks.CHECK_ERRORS)
    yield data
    cost = None
    if data.status != "ok":
        yield _not_checked("plan, network", "the data cannot be read")
    else:
        try:
            plan = make_plan_for(config)
            check_data_matches_config(config, overrides)
        except local_checks.CHECK_ERRORS as error:
            yield CheckResult("fail", "plan", str(error))
            yield _not_checked("network", "there is no plan")
        else:
            yield CheckResult("ok", "plan", "; ".join(plan.summary_lines()))
            network, cost = _network(config, plan)
            yield network
    yield run_check(
        "run directory", lambda: local_checks.check_run_dir(config), local_checks.CHECK_ERRORS
    )
    yield local_checks.check_disk(config, cost)
    yield _mlflow(config)
    if config.launcher.name == "local":
        yield _without_slurm()
        if data.status == "ok":
            yield from local_checks.check_cache_space(config)
        if nodes:
            yield CheckResult("fail", "nodes", "--on-nodes needs Slurm: run it on a login node")
    else:
        yield from _slurm(config, cost, nodes=nodes)


def _not_checked(what: str, why: str) -> CheckResult:
    return CheckResult("warn", what, f"not checked: {why}")


def _config(overrides: Sequence[str]) -> Config:
    """Return the config as `tahoe submit` would have it, or where no Slurm answers `train`."""
    names_cluster = any(one.startswith(("slurm=", "slurm.")) for one in overrides)
    for_slurm = names_cluster or (shutil.which("sbatch") and client.unreachable_reason() is None)
    points = compose([*(["launcher=slurm"] if for_slurm else []), *overrides])
    if len(points) != 1:
        raise ConfigError("`tahoe doctor` looks at one config: leave -m and its like out")
    return points[0].config


def _network(config: Config, plan: Plan) -> tuple[CheckResult, ModelCost | None]:
    try:
        cost = model_cost(config, plan)
    except TorchWorkerError as error:
        return CheckResult("warn", "network", f"its cost is unknown: {error}"), None
    except ConfigError as error:
        return CheckResult("fail", "network", str(error)), None
    return CheckResult("ok", "network", str(cost)), cost


def _mlflow(config: Config) -> CheckResult:
    if not config.tracking.enabled:
        return CheckResult("ok", "MLflow", "tracking=none: nothing is shown there")
    from orchestrator.tracking.mlflow_store.connectivity import check_connection

    uri, experiment = config.tracking.uri, config.tracking.experiment
    return run_check("MLflow", lambda: check_connection(uri, experiment), local_checks.CHECK_ERRORS)


def _without_slurm() -> CheckResult:
    """Return that this machine is enough, and why Slurm is not asked where it is installed."""
    told = "not asked: `tahoe train` runs on this machine"
    if shutil.which("sbatch") and (why := client.unreachable_reason()):
        return CheckResult("warn", "Slurm", f"{told}. {why}")
    return CheckResult("ok", "Slurm", told)


def _slurm(config: Config, cost: ModelCost | None, *, nodes: bool) -> Iterator[CheckResult]:
    taken = run_check("Slurm", lambda: local_checks.check_queue(config), local_checks.CHECK_ERRORS)
    yield taken
    if nodes and taken.status != "ok":
        yield _not_checked("nodes", "Slurm does not take the job")
    elif nodes:
        try:
            yield from check_nodes(config, cost)
        except local_checks.CHECK_ERRORS as error:
            yield CheckResult("fail", "nodes", str(error))
