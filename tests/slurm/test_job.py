"""The job script: a pure value, read back by a real shell whatever its values hold."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slurm.job import Job, render

GOLDEN = Path(__file__).parent / "golden"
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
PLAIN = Job("tahoe run", "/runs/a run", "/venv/bin/python")
WHOLE = Job(
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
PYXIS = Job(
    *("tahoe run", "/runs/run", "/venv/bin/python", ("/code",)),
    container_image="nvcr.io#nvidia/pytorch:25.10-py3",
    container_mounts=("/data",),
)
APPTAINER = Job(
    *("tahoe run", "/runs/run", "/venv/bin/python", ("/code",)),
    gpus_per_node=1,
    container_image="/images/py torch.sif",
    container_runtime="apptainer",
    container_mounts=("/scratch:/data",),
)


@pytest.mark.parametrize(
    ("name", "job"),
    [("plain", PLAIN), ("whole", WHOLE), ("pyxis", PYXIS), ("apptainer", APPTAINER)],
)
def test_scripts_are_what_somebody_has_looked_at(name: str, job: Job) -> None:
    assert render(job) == (GOLDEN / f"{name}.sbatch").read_text()


@given(texts, texts, st.lists(texts, max_size=2), texts)
@settings(deadline=None, max_examples=60)
@example("/runs/it's $(a) run", "py thon", ["a;b", "c d"], "x\ny")
def test_a_shell_reads_back_what_was_meant(
    run_dir: str, python: str, python_path: list[str], value: str
) -> None:
    job = Job("n", f"/{run_dir}", python, tuple(python_path), environ={"MINE": value})
    if "\n" in run_dir or "\r" in run_dir:
        with pytest.raises(ValueError, match="line break"):
            render(job)
        return
    script = render(job).partition("\n\n# The ranks answer")[0]
    shown = 'printf "%s\\0" "$run" "$python" "${PYTHONPATH-}" "$MINE"'
    done = subprocess.run(["bash", "-c", f"{script}\n{shown}"], capture_output=True, check=True)
    expected = [f"/{run_dir}", python, ":".join(python_path), value]
    assert [field.decode() for field in done.stdout.split(b"\0")[:-1]] == expected


def test_the_whole_script_is_bash(tmp_path: Path) -> None:
    for job in (PLAIN, WHOLE, PYXIS, APPTAINER):
        script = tmp_path / "job.sbatch"
        script.write_text(render(job))
        subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"environ": {"a b": "x"}}, "cannot be the name of an environment variable"),
        ({"additional_parameters": {"x\n#SBATCH --uid": "root"}}, "is no option of sbatch"),
        ({"partition": "a\n#SBATCH --uid=root"}, "has a line break"),
    ],
)
def test_what_no_script_can_hold_is_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render(Job("n", "/r", "python", **wrong))
