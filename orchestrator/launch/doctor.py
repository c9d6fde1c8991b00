"""`tahoe doctor`: what can go wrong with a run, found before its job has waited for days."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from orchestrator.config import ConfigError
from orchestrator.launch import checks
from orchestrator.launch.ask import UnansweredError
from orchestrator.launch.checkup import on_nodes
from orchestrator.launch.compose import compose
from orchestrator.launch.cost import Cost, cost_of
from orchestrator.launch.create import plan_of
from orchestrator.launch.finding import Finding, found_by, is_well, show
from orchestrator.launch.json_output import strict_json
from orchestrator.launch.likeness import check_likeness
from orchestrator.plan import Plan
from orchestrator.schema import Config
from slurm import client


def examine(overrides: Sequence[str], *, nodes: bool, as_json: bool) -> int:
    """Print what is found of a config; return 0 if nothing has failed, else 1."""
    found: list[Finding] = []

    def kept() -> Iterator[Finding]:
        for one in _findings(overrides, nodes=nodes):
            found.append(one)
            yield one

    if as_json:
        print(strict_json([asdict(one) for one in kept()]))
    else:
        show(kept())
    return 0 if is_well(found) else 1


def _findings(overrides: Sequence[str], *, nodes: bool) -> Iterator[Finding]:
    yield from checks.versions()
    try:
        config = _config(overrides)
    except ConfigError as error:
        yield Finding("fail", "config", f"{error}")
        yield _not_checked("all else", "there is no config")
        return
    yield Finding("ok", "config", f"{config.model.name} on {config.data.name}")
    data = found_by("data", lambda: checks.readable(config), checks.CHECK_ERRORS)
    yield data
    cost = None
    if data.level != "ok":
        yield _not_checked("plan, network", "the data cannot be read")
    else:
        try:
            plan = plan_of(config)
            check_likeness(config, overrides)
        except checks.CHECK_ERRORS as error:
            yield Finding("fail", "plan", str(error))
            yield _not_checked("network", "there is no plan")
        else:
            yield Finding("ok", "plan", "; ".join(plan.lines()))
            network, cost = _network(config, plan)
            yield network
    yield found_by("run directory", lambda: checks.writable(config), checks.CHECK_ERRORS)
    yield checks.disk(config, cost)
    yield _mlflow(config)
    if config.launcher.name == "local":
        yield _without_slurm()
        if data.level == "ok":
            yield from checks.cache(config)
        if nodes:
            yield Finding("fail", "nodes", "--on-nodes needs Slurm: run it on a login node")
    else:
        yield from _slurm(config, cost, nodes=nodes)


def _not_checked(what: str, why: str) -> Finding:
    return Finding("warn", what, f"not checked: {why}")


def _config(overrides: Sequence[str]) -> Config:
    """Return the config as `tahoe submit` would have it, or where no Slurm answers `train`."""
    names_cluster = any(one.startswith("cluster=") and one != "cluster=local" for one in overrides)
    for_slurm = names_cluster or (shutil.which("sbatch") and client.silence() is None)
    points = compose([*(["launcher=slurm"] if for_slurm else []), *overrides])
    if len(points) != 1:
        raise ConfigError("`tahoe doctor` looks at one config: leave -m and its like out")
    return points[0].config


def _network(config: Config, plan: Plan) -> tuple[Finding, Cost | None]:
    try:
        cost = cost_of(config, plan)
    except UnansweredError as error:
        return Finding("warn", "network", f"its cost is unknown: {error}"), None
    except ConfigError as error:
        return Finding("fail", "network", str(error)), None
    return Finding("ok", "network", str(cost)), cost


def _mlflow(config: Config) -> Finding:
    if not config.tracking.enabled:
        return Finding("ok", "MLflow", "tracking=none: nothing is shown there")
    from orchestrator.tracking.reach import reach

    uri, experiment = config.tracking.uri, config.tracking.experiment
    return found_by("MLflow", lambda: reach(uri, experiment), checks.CHECK_ERRORS)


def _without_slurm() -> Finding:
    """Return that this machine is enough, and why Slurm is not asked where it is installed."""
    told = "not asked: `tahoe train` runs on this machine"
    if shutil.which("sbatch") and (why := client.silence()):
        return Finding("warn", "Slurm", f"{told}. {why}")
    return Finding("ok", "Slurm", told)


def _slurm(config: Config, cost: Cost | None, *, nodes: bool) -> Iterator[Finding]:
    taken = found_by("Slurm", lambda: checks.queue(config), checks.CHECK_ERRORS)
    yield taken
    if nodes and taken.level != "ok":
        yield _not_checked("nodes", "Slurm does not take the job")
    elif nodes:
        try:
            yield from on_nodes(config, cost)
        except checks.CHECK_ERRORS as error:
            yield Finding("fail", "nodes", str(error))
