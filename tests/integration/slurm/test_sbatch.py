"""The job script: a pure value, read back by a real shell whatever its values hold."""

import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sbatch_requests import sbatch_request

from slurm import sbatch
from slurm.sbatch import Container, SbatchRequest, overruled, sbatch_options

render = partial(
    sbatch.render_sbatch, worker="orchestrator.training.worker", hooks="orchestrator.jobs.job_hooks"
)
GOLDEN = Path(__file__).parents[2] / "support" / "golden"
HOSTILE = [
    "a b",
    "it's",
    '"',
    ";rm -rf /",
    "$(touch x)",
    "`x`",
    "\\",
    "a\nb",
    "*",
    "#",
    "%j",
    "ü",
    "-",
]
texts = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20),
)
PLAIN = sbatch_request("tahoe run", "/runs/a run", "/venv/bin/python")
WHOLE = sbatch_request(
    "tahoe run",
    "/runs/run",
    "/venv/bin/python",
    ("/runs/run/code/0-tahoe",),
    nodes=4,
    tasks_per_node=8,
    gpus_per_node=8,
    cpus_per_task=12,
    mem_gb=480.5,
    timeout_min=1440,
    partition="gpu",
    account="vision",
    qos="normal",
    constraint="a100&nvlink",
    exclude="node[03-05]",
    modules=("cuda/12.8",),
    setup=("ulimit -n 65536",),
    srun_args=("--cpu-bind=none",),
    additional_parameters={"reservation": "night", "exclusive": True, "comment": 'it\'s "ours"'},
    environ={"OMP_NUM_THREADS": "12"},
)
PYXIS = sbatch_request(
    *("tahoe run", "/runs/run", "/venv/bin/python", ("/code",)),
    container=Container(
        image="nvcr.io#nvidia/pytorch:25.10-py3",
        runtime="pyxis",
        python="python",
        mounts=("/data",),
    ),
)
SPARES = replace(PLAIN, nodes="4-8", spare_nodes=1)
APPTAINER = sbatch_request(
    *("tahoe run", "/runs/run", "/venv/bin/python", ("/code",)),
    gpus_per_node=1,
    container=Container(
        image="/images/py torch.sif",
        runtime="apptainer",
        python="python",
        mounts=("/scratch:/data",),
    ),
)


@pytest.mark.parametrize(
    ("name", "job"),
    [
        ("plain", PLAIN),
        ("whole", WHOLE),
        ("pyxis", PYXIS),
        ("apptainer", APPTAINER),
        ("spares", SPARES),
    ],
)
def test_scripts_are_the_reviewed_ones(name: str, job: SbatchRequest) -> None:
    assert render(job) == (GOLDEN / f"{name}.sbatch").read_text()


@given(texts, texts, st.lists(texts, max_size=2), texts)
@settings(max_examples=60)
@example("/runs/it's $(a) run", "py thon", ["a;b", "c d"], "x\ny")
def test_a_shell_reads_back_the_values(
    run_dir: str, python: str, python_path: list[str], value: str
) -> None:
    job = sbatch_request("n", f"/{run_dir}", python, tuple(python_path), environ={"MINE": value})
    if {"\n", "\r", "\\"} & set(run_dir):
        with pytest.raises(ValueError, match=r"line break|backslash"):
            render(job)
        return
    script = render(job).partition("\n\n# The ranks handle")[0]
    shown = 'printf "%s\\0" "$run" "$python" "${PYTHONPATH-}" "$MINE"'
    done = subprocess.run(["bash", "-c", f"{script}\n{shown}"], capture_output=True, check=True)
    expected = [f"/{run_dir}", python, ":".join(python_path), value]
    assert [field.decode() for field in done.stdout.split(b"\0")[:-1]] == expected


def test_the_whole_script_is_bash(tmp_path: Path) -> None:
    for job in (PLAIN, WHOLE, PYXIS, APPTAINER, SPARES):
        script = tmp_path / "job.sbatch"
        script.write_text(render(job))
        subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"environ": {"a b": "x"}}, "environment variable"),
        ({"additional_parameters": {"x\n#SBATCH --uid": "root"}}, "long option of sbatch"),
        ({"additional_parameters": {"p": "gpu"}}, "long option of sbatch"),
        ({"additional_parameters": {"ntasks": 3}}, "tasks_per_node"),
        ({"additional_parameters": {"gpus": 8}, "spare_nodes": 1}, "gpus_per_node"),
        ({"additional_parameters": {"gpus": 8}, "nodes": "2-4"}, "gpus_per_node"),
        ({"additional_parameters": {"ntasks_per_node": 3}}, "tasks_per_node"),
        ({"partition": "a\n#SBATCH --uid=root"}, "line break"),
        ({"run_dir": "/runs/a\\b"}, "backslash"),
    ],
)
def test_invalid_values_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render(sbatch_request(**{"name": "n", "run_dir": "/r", "python": "python"} | wrong))


@pytest.mark.parametrize(
    ("options", "additional", "expected"),
    [
        ({"gpus_per_node": 4}, {"gres": "gpu:a100:4"}, ["gres=gpu:a100:4"]),
        ({"gpus_per_node": 4}, {"gres": "lustre:1"}, ["gpus-per-node=4", "gres=lustre:1"]),
        ({"mem_gb": 8}, {"mem_per_cpu": "4G"}, ["mem-per-cpu=4G"]),
        ({"timeout_min": 60}, {"time": "2:00:00"}, ["time=2:00:00"]),
        ({}, {"no-requeue": True}, ["no-requeue"]),
    ],
)
def test_an_additional_parameter_replaces_what_it_contradicts(
    options: dict, additional: dict, expected: list[str]
) -> None:
    job = replace(PLAIN, **options, additional_parameters=additional)
    names = ("gpus", "gres", "mem", "time", "no-requeue")
    assert [line for line in sbatch_options(job) if line.startswith(names)] == expected
    assert ("requeue" in sbatch_options(job)) == ("no-requeue" not in additional)
    replaced = [] if len(expected) > 1 else expected
    assert [new for _, new in overruled(job)] == replaced


def test_apptainer_sees_gpus_however_they_are_requested() -> None:
    for additional in ({"gres": "gpu:1"}, {"gpus": 2}, {"gpus_per_task": 1}):
        job = replace(APPTAINER, gpus_per_node=0, additional_parameters=additional)
        assert " --nv " in render(job)
    assert " --nv " not in render(replace(APPTAINER, gpus_per_node=0))


def test_ranks_get_exported_variables_with_export_none(tmp_path: Path) -> None:
    """--export=NONE leaves SLURM_EXPORT_ENV=NONE to the script, and srun would go by it."""
    environ = {"SLURM_EXPORT_ENV": "NONE", "SBATCH_TIMELIMIT": "1", "SBATCH_ACCOUNT": "mine"}
    script = render(replace(PLAIN, timeout_min=60)).partition("\n\n# The ranks handle")[0]
    done = subprocess.run(
        ["bash", "-c", f"{script}\nenv"], env=environ, capture_output=True, text=True, check=True
    )
    left = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert "SLURM_EXPORT_ENV" not in left
    assert "SBATCH_TIMELIMIT" not in left  # the next attempt is asked for by the script's own
    assert left["SBATCH_ACCOUNT"] == "mine"  # which the script leaves to the site


def test_limits_of_the_login_node_do_not_hold_for_jobs() -> None:
    """PropagateResourceLimits=ALL is Slurm's default, for soft limits."""
    script = render(PLAIN).partition("\n\n# The ranks handle")[0]
    shell = f"ulimit -S -t 99; ulimit -S -n 99\n{script}\nulimit -S -t; ulimit -S -n; ulimit -H -n"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    cpu_s, files, most_files = done.stdout.split()
    assert cpu_s != "99"
    assert files == most_files != "99"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("code", "message"),
    [(0, ""), (1, "another attempt of /runs/a run is running"), (71, "without locks")],
)
def test_a_missing_lock_is_not_reported_as_held(tmp_path: Path, code: int, message: str) -> None:
    flock = tmp_path / "flock"  # util-linux: 71 where the kernel has no lock, 1 after the timeout
    flock.write_text(f"#!/bin/sh\nexit {code}\n")
    flock.chmod(0o755)
    locking = render(PLAIN).partition('run/lock"\n')[2].partition("\nlaunch_ranks()")[0]
    command = f"run='/runs/a run'\nPATH={tmp_path}:$PATH\n{locking}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == min(code, 1)
    assert message in done.stderr
    assert not (code == 71 and "is running" in done.stderr)
