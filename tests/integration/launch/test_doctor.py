"""`tahoe doctor` on the machine that submits: each check, passed and failed."""

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_runner import Tahoe
from s3_server import S3

from data_sharding.errors import DataError
from orchestrator.config.parse import parse
from orchestrator.config.schema import Cache, Config
from orchestrator.launch.checks.model_cost import ModelCost
from orchestrator.preflight import local_checks
from orchestrator.preflight.local_checks import CheckResult
from orchestrator.run.rundir import RunError

COST = ModelCost(num_params=10**6, gmacs=1.0, petaflop=1.0)


@pytest.fixture
def config(values: dict[str, Any], digits: Path, tmp_path: Path) -> Config:
    values["data"]["url"] = str(digits)
    return parse(values | {"runs_dir": str(tmp_path / "runs")})


def with_url(config: Config, url: str) -> Config:
    return replace(config, data=replace(config.data, url=url))


def test_the_data_check_reads_shards_and_not_only_manifests(
    config: Config, digits: Path, tmp_path: Path
) -> None:
    assert "train: 1,438 images in 3 shards" in local_checks.check_data(config)
    copy = tmp_path / "set"
    for split in ("train", "val"):
        (copy / split).mkdir(parents=True)
        manifest = (digits / split / "manifest.json").read_bytes()
        (copy / split / "manifest.json").write_bytes(manifest)
    with pytest.raises(DataError, match="FileNotFoundError") as refused:
        local_checks.check_data(with_url(config, str(copy)))
    assert refused.value.value == str(copy / "train" / "shard-000000.tar")


def test_the_data_check_reads_from_s3(config: Config, s3_server: S3, digits: Path) -> None:
    s3_server.fail()  # no longer
    url = s3_server.url("looked at")
    s3_server.put(url, digits)
    assert url in local_checks.check_data(with_url(config, url))


def test_the_run_directory_is_written_and_nothing_is_left(config: Config, tmp_path: Path) -> None:
    assert str(tmp_path) in local_checks.check_run_dir(config)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").touch()
    for runs_dir, parent in ((config.runs_dir, tmp_path / "runs"), ("/proc/1/runs", "/proc/1")):
        with pytest.raises(RunError) as refused:
            local_checks.check_run_dir(replace(config, runs_dir=runs_dir))
        assert refused.value.value == Path(parent)


@pytest.mark.long
@pytest.mark.slow
def test_a_closed_directory_fails_the_run_directory_check(config: Config, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    command = [sys.executable, "-m", "orchestrator.cli.main", "doctor", "--json"]
    command += [f"data.url='{config.data.url}'", f"runs_dir='{closed}/runs'", "tracking=none"]
    if os.geteuid() == 0:  # whom nothing is closed to, unless this is taken away
        rights = "-dac_override,-dac_read_search"
        command = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    (found,) = [one for one in json.loads(done.stdout) if one["name"] == "run directory"]
    assert found["status"] == "fail"
    assert f"{closed} cannot be written: Permission denied" in found["message"]


def test_the_disk_check_compares_checkpoints_with_free_space(config: Config) -> None:
    assert local_checks.check_disk(config, COST).status == "ok"
    assert "up to about 0.064 GB" in local_checks.check_disk(config, COST).message
    huge = replace(COST, num_params=10**15)
    assert local_checks.check_disk(config, huge).status == "fail"
    assert local_checks.check_disk(config, None).status == "warn"

    def saved_at(url: str) -> CheckResult:
        return local_checks.check_disk(
            replace(config, checkpoint=replace(config.checkpoint, url=url)), huge
        )

    assert "not known here" in saved_at("s3://bucket/run").message
    assert saved_at("odd://bucket/run").status == "fail"
    assert "Protocol not known: odd" in saved_at("odd://bucket/run").message


def test_the_cache_of_remote_data_needs_space(config: Config, tmp_path: Path) -> None:
    assert list(local_checks.check_cache_space(config)) == []
    away = with_url(config, "memory://set")
    assert isinstance(away.data.cache, Cache)
    there, file = str(tmp_path / "cache"), str(tmp_path / "file")
    Path(file).touch()
    for place, max_gb, level in (
        (there, 1e-3, "ok"),
        (there, 1e9, "warn"),
        (f"{file}/cache", 1e-3, "fail"),
        ("/proc/1/cache", 1e-3, "fail"),
    ):
        cache = replace(away.data.cache, dir=place, max_gb=max_gb)
        (found,) = local_checks.check_cache_space(
            replace(away, data=replace(away.data, cache=cache))
        )
        assert (found.name, found.status) == ("cache", level)
    cache = replace(away.data.cache, dir="$NOT_SET_ANYWHERE/cache")
    (found,) = local_checks.check_cache_space(replace(away, data=replace(away.data, cache=cache)))
    assert (found.name, found.status) == ("cache", "fail")


def test_versions_are_compared_with_the_requirements_of_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (passed,) = local_checks.check_versions()
    assert passed.status == "ok"
    assert "torch " in passed.message
    needed = ["torch>=99", "not-there>1", 's3fs; extra == "s3"']
    monkeypatch.setattr(local_checks, "requires", lambda _: needed)
    monkeypatch.setattr(local_checks, "metadata", lambda _: {"Requires-Python": "<3"})
    python, old, missing, rest = local_checks.check_versions()
    assert (python.status, old.status, missing.status) == ("fail", "fail", "fail")
    assert "Tahoe needs <3" in python.message
    assert "Tahoe needs >=99" in old.message
    assert "not-there is not installed" in missing.message
    assert rest.message == f"Python {platform.python_version()}"


def doctor(tahoe: Tahoe, *arguments: str) -> tuple[int, dict[str, tuple[str, str]]]:
    done = tahoe("doctor", "--json", *arguments, check=False)
    results = json.loads(done.stdout)
    return done.returncode, {one["name"]: (one["status"], one["message"]) for one in results}


@pytest.fixture
def no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the only directory in which programs are found."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    return programs


@pytest.mark.slow
@pytest.mark.usefixtures("no_slurm")
def test_without_slurm_doctor_checks_this_machine(tahoe: Tahoe, digits: Path) -> None:
    place = f"data.url='{digits}'"
    code, found = doctor(tahoe, place, "launcher.nproc_per_node=2")
    assert (code, {level for level, _ in found.values()}) == (0, {"ok"})
    assert "2 ranks" in found["plan"][1]
    assert "60,850 parameters" in found["network"][1]
    assert "`tahoe train` runs on this machine" in found["Slurm"][1]
    assert sorted(path.name for path in tahoe.cwd.iterdir()) == ["programs"]  # nothing is left
    code, found = doctor(tahoe, place, "--on-nodes")
    assert (code, found["nodes"][0]) == (1, "fail")
    code, found = doctor(tahoe, place, "slurm=default")
    assert (code, found["Slurm"][0]) == (1, "fail")
    assert "no `sbatch` on this machine" in found["Slurm"][1]


def test_an_unavailable_slurm_fails_only_configs_of_a_cluster(tahoe: Tahoe, no_slurm: Path) -> None:
    for name in ("sbatch", "sinfo"):
        (no_slurm / name).write_text("#!/bin/sh\necho 'no controller' >&2; exit 1\n")
        (no_slurm / name).chmod(0o755)
    _, found = doctor(tahoe, "data.url=odd://set", "tracking=none")
    assert found["Slurm"][0] == "warn"
    assert "no controller" in found["Slurm"][1]
    _, found = doctor(tahoe, "data.url=odd://set", "tracking=none", "slurm=default")
    assert found["Slurm"][0] == "fail"


@pytest.mark.slow
def test_one_failed_check_hides_no_other(tahoe: Tahoe, no_slurm: Path) -> None:
    (no_slurm / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: no such account' >&2; exit 1\n"
    )
    (no_slurm / "sbatch").chmod(0o755)
    (no_slurm / "sinfo").write_text("#!/bin/sh\n")
    (no_slurm / "sinfo").chmod(0o755)
    uri = "tracking.uri=http://127.0.0.1:9"
    code, found = doctor(tahoe, "data.url=odd://set", "runs_dir=/proc/1/runs", uri, "--on-nodes")
    assert code == 1
    failed = {what for what, (level, _) in found.items() if level == "fail"}
    assert failed == {"data", "run directory", "MLflow", "Slurm"}
    assert "no such account" in found["Slurm"][1]
    for what in ("plan, network", "nodes"):
        assert found[what][0] == "warn"
        assert found[what][1].startswith("not checked: ")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("recipe.steps=x", "recipe.steps: Input should be a valid integer"),
        ("model=no_such", "there is no such choice"),
        ("-m", "checks one config"),
    ],
)
@pytest.mark.usefixtures("no_slurm")
def test_an_invalid_config_fails_its_check(tahoe: Tahoe, override: str, said: str) -> None:
    code, found = doctor(tahoe, override, *(["seed=1,2"] if override == "-m" else []))
    assert (code, found["config"][0]) == (1, "fail")
    assert said in found["config"][1]
    assert list(found) == ["versions", "config", "all else"]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.usefixtures("no_slurm")
def test_an_unknown_model_argument_fails_the_network_check(tahoe: Tahoe, digits: Path) -> None:
    code, found = doctor(tahoe, f"data.url='{digits}'", "+model.kwargs.depth=3")
    assert (code, found["network"][0]) == (1, "fail")
    assert "unexpected keyword argument 'depth'" in found["network"][1]
    assert found["disk"][0] == "warn"


def test_results_are_printed_in_columns(tahoe: Tahoe) -> None:
    done = tahoe("doctor", "recipe.steps=x", check=False)
    assert done.stdout.startswith("ok   versions        ")
    assert "\nfail config          " in done.stdout
