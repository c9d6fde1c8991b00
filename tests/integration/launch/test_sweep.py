"""`tahoe submit -m` with a fake sbatch that only copies its scripts."""

import json
import math
import os
from enum import Enum
from pathlib import Path

import pytest
import yaml
from cli_runner import Tahoe
from omegaconf import OmegaConf
from sweepers import install_sweeper

from orchestrator.config.parse import ConfigError
from orchestrator.jobs.status import run_statuses
from orchestrator.jobs.sweep import _objective_value
from orchestrator.launch.hydra_plugin import reject_minimizing_sweeper
from orchestrator.run.outcome import RunOutcome
from orchestrator.run.rundir import RunDir, RunError, append_json_line

Direction = Enum("Direction", "minimize maximize")  # as that of the Optuna sweeper

SBATCH = """#!/bin/sh
for script; do :; done
cp "$script" "$0.$(ls "$0".* 2>/dev/null | wc -l)"
echo "$0" | wc -c
"""
SWEEP = """
    def sweep(self, arguments):
        return self.launcher.launch([[*arguments, "seed=1"]], initial_job_idx=0)
"""
RESULTS = """
    def sweep(self, arguments):
        (done,) = self.launcher.launch([[*arguments, "seed=1"]], initial_job_idx=0)
        directory = self.launcher.config.hydra.sweep.dir
        with open(f"{directory}/optimization_results.yaml", "w") as file:
            file.write(f"best_params: {{seed: 1}}\\nstate: {done.status.name}\\n")
"""
SEARCH = "hydra/sweeper of this test"  # replaced by the override that chooses it
WAITING = ("hydra.launcher.wait=true",)


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An sbatch that copies each script to NAME.0, NAME.1, ...; nothing is ever queued."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, body in (("sbatch", SBATCH), ("squeue", "#!/bin/sh\n"), ("sacct", "#!/bin/sh\n")):
        (programs / name).write_text(body)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return programs / "sbatch"


def options(digits: Path) -> list[str]:
    size = ["recipe.steps=1", "recipe.global_batch_size=64"]
    return ["-m", "slurm=default", "tracking=none", f"data.url='{digits}'", *size]


def submitted(sbatch: Path) -> list[str]:
    return [path.read_text() for path in sorted(sbatch.parent.glob("sbatch.*"))]


def test_points_with_equal_resources_are_one_array(
    tahoe: Tahoe, sbatch: Path, digits: Path
) -> None:
    done = tahoe("submit", *options(digits), "seed=1,2,3", "slurm.array_parallelism=2")
    (script,) = submitted(sbatch)
    assert "\n#SBATCH --array=0-2%2\n" in script
    (sweep,) = (tahoe.cwd / "runs" / "sweeps").iterdir()
    runs = (sweep / "array-1.txt").read_text().splitlines()
    assert len(set(runs)) == 3
    for i, run in enumerate(runs):
        assert (Path(run) / "job.sbatch").exists()
        line = json.loads((Path(run) / "slurm_jobs.jsonl").read_text())
        assert line["slurm_job_id"].endswith(f"_{i}")
        assert line["num_steps"] == 1
        assert f"{line['slurm_job_id']}  {run}\n" in done.stdout
    assert f"tahoe status {sweep}" in done.stdout
    found = json.loads(tahoe("status", "--json", str(sweep)).stdout)
    assert [one["path"] for one in found] == runs
    assert Path(runs[2]).name in tahoe("status", str(sweep)).stdout


@pytest.mark.slow
def test_points_with_other_resources_are_another_array(
    tahoe: Tahoe, sbatch: Path, digits: Path
) -> None:
    run_dir = "run_dir='${seed} on ${slurm.nodes}'"
    tahoe("submit", *options(digits), "seed=1,2,3", "slurm.nodes=1,2", run_dir)
    first, second = submitted(sbatch)
    assert "\n#SBATCH --nodes=1\n" in first
    assert "\n#SBATCH --nodes=2\n" in second
    assert "\n#SBATCH --array=0-2\n" in second
    (sweep,) = (tahoe.cwd / "runs" / "sweeps").iterdir()
    names = [Path(line).name for line in (sweep / "array-2.txt").read_text().splitlines()]
    assert names == ["1 on 2", "2 on 2", "3 on 2"]


@pytest.mark.slow
def test_a_refused_array_names_those_submitted_before(
    tahoe: Tahoe, sbatch: Path, digits: Path
) -> None:
    refusal = 'grep -q nodes=2 "$script" && exit 1'
    sbatch.write_text(SBATCH.replace("done\n", f"done\n{refusal}\n", 1))
    size = ["seed=1,2", "slurm.nodes=1,2", "run_dir='${seed} on ${slurm.nodes}'"]
    done = tahoe("submit", *options(digits), *size, check=False)
    (sweep,) = (tahoe.cwd / "runs" / "sweeps").iterdir()
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("submitted array")]
    array = line.split()[2]
    assert done.returncode == 1
    assert "Nothing" not in done.stderr
    assert f"1 array ({array})" in done.stderr
    assert f"tahoe cancel {sweep}" in done.stderr
    states = [one["state"] for one in json.loads(tahoe("status", "--json", str(sweep)).stdout)]
    assert states == ["stopped", "scheduled", "stopped", "scheduled"]  # the queue is empty by now


@pytest.mark.slow
def test_batches_of_a_sweep_share_its_directory(tahoe: Tahoe, sbatch: Path, digits: Path) -> None:
    tahoe("submit", *options(digits), "seed=1,2,3", "hydra.sweeper.max_batch_size=2")
    assert len(submitted(sbatch)) == 2
    (sweep,) = (tahoe.cwd / "runs" / "sweeps").iterdir()
    assert len(json.loads(tahoe("status", "--json", str(sweep)).stdout)) == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=1,2", "recipe.global_batch_size=64,-1"], "recipe.global_batch_size"),
        (["seed=1,2", "run_dir=here"], "two points of the sweep would be one run"),
        (["seed=1,2", "data.url=nowhere"], "nowhere"),
        (["seed=1,2", "+slurm.additional_parameters.X=1"], "long option of sbatch"),
        ([SEARCH], "hydra.launcher.wait=true"),
        ([SEARCH, "--dry-run"], "hydra.launcher.wait=true"),
        ([SEARCH, *WAITING, "+hydra.sweeper.direction=minimize"], "direction=maximize"),
    ],
)
def test_one_invalid_point_refuses_the_sweep_before_any_submission(
    tahoe: Tahoe, sbatch: Path, digits: Path, overrides: list[str], message: str
) -> None:
    search = install_sweeper(tahoe.cwd, "Search", SWEEP)
    given = [search if override == SEARCH else override for override in overrides]
    done = tahoe("submit", *options(digits), *given, check=False)
    assert done.returncode in (1, 93)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert submitted(sbatch) == []


@pytest.mark.slow
def test_results_of_a_search_are_printed_and_kept(tahoe: Tahoe, sbatch: Path, digits: Path) -> None:
    sweeper = install_sweeper(tahoe.cwd, "Finder", RESULTS)
    done = tahoe("submit", *options(digits), sweeper, *WAITING)
    (sweep,) = (tahoe.cwd / "runs" / "sweeps").iterdir()
    kept = (sweep / "optimization_results.yaml").read_text()
    assert yaml.safe_load(kept) == {"best_params": {"seed": 1}, "state": "FAILED"}  # it never ran
    assert kept in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert "failed" in line
    assert len(submitted(sbatch)) == 1


@pytest.mark.parametrize(
    ("sweeper", "key"),
    [
        ({"direction": "minimize"}, "direction=maximize"),
        ({"direction": Direction.minimize}, "direction=maximize"),
        ({"direction": ["maximize", "minimize"]}, "direction=maximize"),
        ({"direction": Direction.maximize}, None),
        ({"optim": {"maximize": False}}, "optim.maximize=true"),
        ({"optim": {"maximize": True}}, None),
        ({"ax_config": {"experiment": {"minimize": True}}}, "ax_config.experiment.minimize=false"),
        ({"n_trials": 3}, None),
    ],
)
def test_a_minimizing_sweeper_is_refused(sweeper: dict, key: str | None) -> None:
    hydra = OmegaConf.create({"sweeper": sweeper})
    if key is None:
        reject_minimizing_sweeper(hydra)
    else:
        with pytest.raises(ConfigError) as refused:
            reject_minimizing_sweeper(hydra)
        assert f"hydra.sweeper.{key}" in refused.value.hint


@pytest.mark.parametrize(
    ("outcome", "figures", "expected"),
    [
        ("finished", [50.0, 70.0, 60.0], 70.0),
        ("finished", [math.nan, 60.0], 60.0),
        ("finished", [math.nan], None),
        ("stopped", [50.0, 40.0], 50.0),
        ("stopped", [], None),
        ("failed_permanently", [50.0], None),
    ],
)
def test_the_objective_value_is_the_best_of_finished_and_stopped_points(
    run: RunDir,
    capsys: pytest.CaptureFixture[str],
    outcome: str,
    figures: list[float],
    expected: float | None,
) -> None:
    attempt = run.begin_attempt()
    for step, figure in enumerate(figures, start=1):
        line = {"step": step, "time_ms": step, "attempt": 1, "metrics": {"val/top1": figure}}
        append_json_line(run.metrics_file, line)
    RunOutcome(outcome, 3, "asked to stop").write(run, attempt)
    run.end_attempt(attempt, exit_code=0)
    value = _objective_value(run, run_statuses([run])[0])
    assert isinstance(value, RunError) if expected is None else value == expected
    is_usual = outcome == "finished" and expected is not None
    assert (str(run.path) in capsys.readouterr().err) != is_usual


@pytest.mark.long
@pytest.mark.slow
def test_a_dry_run_prints_a_script_and_every_point(
    tahoe: Tahoe, sbatch: Path, digits: Path
) -> None:
    shown = tahoe("submit", "--dry-run", *options(digits), "seed=1,2,3").stdout
    assert shown.count("#!/bin/bash") == 1
    arithmetic, _ = shown.split("#!/bin/bash")
    assert "petaFLOP" in arithmetic
    assert "\n# an array of 3 jobs like this:\n" in arithmetic
    assert all(f"seed={seed}\n" in shown for seed in (1, 2, 3))
    waiting = ["seed=1,2,3", "hydra.launcher.wait=true"]
    assert "# Further points" in tahoe("submit", "--dry-run", *options(digits), *waiting).stdout
    some_nodes = ["slurm.nodes=2-4", "slurm.spare_nodes=1", "data.num_lanes=32"]
    sizes = [*some_nodes, "recipe.num_micro_batches=32", "recipe.global_batch_size=64"]
    shown = tahoe("submit", "--dry-run", *options(digits), *sizes).stdout
    assert "#SBATCH --nodes=3-5\n" in shown
    assert "micro-batches of 2, 8 on each of 4 ranks" in shown  # of 3 nodes, the ranks do not fit
    assert ": 4, 2;" in shown
    assert submitted(sbatch) == []
    assert not (tahoe.cwd / "runs").exists()
