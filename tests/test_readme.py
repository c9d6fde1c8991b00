"""The READMEs are true: their commands run, the tree is the tree, their links lead somewhere."""

import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from cli_runner import Tahoe
from config_fixtures import AS_DIGITS
from PIL import Image

from data_sharding.format.manifest import Manifest, ShardInfo, write_manifest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", *(f"{room}/README.md" for room in ("orchestrator", "data_sharding"))]


def tracked_files() -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name for name in listed.stdout.split("\n") if name and (ROOT / name).exists()}


def drawn_directories() -> set[str]:
    """Return the directories that the README draws: two spaces of indent a level."""
    block = README.split("## Where to read on")[1].split("```")[1]
    directories, parents = set[str](), list[str]()
    for line in block.splitlines():
        if named := re.match(r"( *)([a-z_]+/)", line):
            parents[len(named[1]) // 2 :] = [named[2]]
            directories.add("".join(parents))
    return directories


def test_the_drawn_tree_has_every_package() -> None:
    rooms = ("data_sharding", "models", "orchestrator", "slurm")
    packages = {
        name.removesuffix("__init__.py")
        for name in tracked_files()
        if name.startswith(rooms) and name.endswith("/__init__.py")
    }
    assert packages <= drawn_directories() <= packages | {"conf/", "tests/"}


def test_a_package_has_at_most_12_modules() -> None:
    numbers = Counter(
        str(Path(name).parent)
        for name in tracked_files()
        if name.endswith(".py") and not name.startswith(("tests/", ".")) and "__init__" not in name
    )
    assert {package: number for package, number in numbers.items() if number > 12} == {}


def test_the_readme_has_at_most_250_lines() -> None:
    assert len(README.splitlines()) <= 250


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text).lower().replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", sorted(n for n in tracked_files() if n.endswith(".md")))
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_run(page: str, tmp_path: Path) -> None:
    commands = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    assert commands
    noise = np.random.default_rng(0)
    for number in range(60):  # the photos of the first hour
        path = tmp_path / "photos" / ("cat", "dog", "owl")[number % 3] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 255, (80, 90, 3), dtype=np.uint8)).save(path)
    environ = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environ.pop("PYTHONPATH", None)  # as for a user: what is installed is what runs
    script = "set -eux\n" + "".join(commands)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=390,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if page != "data_sharding/README.md":
        assert "finished" in done.stdout
        assert (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_that_it_names_exist(page: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert (
        set(re.findall(r"(?:^ {4}|`)make ([\w-]+)", (ROOT / page).read_text(), re.MULTILINE))
        <= targets
    )


@pytest.mark.slow
def test_its_example_of_a_cluster_is_a_job(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```yaml\n(# @package _global_\n.*?)```", README, flags=re.DOTALL)
    (tmp_path / "conf" / "slurm").mkdir(parents=True)
    (tmp_path / "conf" / "slurm" / "a100.yaml").write_text(shown)
    for split, num_samples in (("train", 100_000), ("val", 1000)):
        shard = ShardInfo("shard-000000.tar", num_samples, 10240, "0" * 64)
        manifest = Manifest(tuple("abcdefghij"), (shard,), {}, images=AS_DIGITS)
        write_manifest(str(tmp_path / "set"), split, manifest)
    commands = re.findall(
        r"^ {4}tahoe (submit .*)$", README.replace("\\\n", " "), flags=re.MULTILINE
    )
    (command,) = [one for one in commands if "slurm=a100" in one]
    arguments = shlex.split(command.replace("s3://set", "set"), comments=True)
    printed = Tahoe(tmp_path)(*arguments, "--dry-run").stdout
    options = {line for line in printed.splitlines() if line.startswith("#SBATCH ")}
    assert {f"#SBATCH --{option}" for option in ("nodes=4", "gpus-per-node=8")} <= options
    assert "#SBATCH --reservation=night" in options
    assert "global batch 1,024 = 32 micro-batches of 32, 1 on each of 32 ranks, " in printed
