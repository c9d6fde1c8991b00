"""From the command to the first step, and to the first step after a crash, beside bare torch.

    python tests/benchmarks/startup.py [--rounds 5]

Two ranks train timm's ResNet-18 on digits for a step. The bare script reads as many images into
memory with plain Python, and uses timm and DDP; it writes nothing. Each round runs all in turn;
what is printed is the median, from when the process was started to when all ranks had done a step.
"""

import argparse
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

NUM_RANKS = 2
BARE = """
import glob, io, sys, tarfile, time
import numpy, torch, torch.distributed as dist
from PIL import Image
from torch.nn.parallel import DistributedDataParallel
import timm
torch.set_num_threads(1)
dist.init_process_group("gloo")
images, labels = [], []
with tarfile.open(sorted(glob.glob(sys.argv[1] + "/train/*.tar"))[0]) as tar:
    for member in tar:
        data = tar.extractfile(member).read()
        if member.name.endswith(".cls"):
            labels.append(int(data))
        else:
            images.append(numpy.asarray(Image.open(io.BytesIO(data)).resize((32, 32))))
        if len(labels) == 64:
            break
network = DistributedDataParallel(timm.create_model("resnet18", num_classes=10, in_chans=1))
optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
batch = torch.from_numpy(numpy.stack(images[:64])).float()[:, None] / 255
torch.nn.functional.cross_entropy(network(batch), torch.tensor(labels)).backward()
optimizer.step()
print(time.time(), flush=True)
dist.destroy_process_group()
"""


def bare(digits: Path) -> float:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(NUM_RANKS)}
    start_s = time.time()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", BARE, digits],
            env={**os.environ, **where, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(NUM_RANKS)
    ]
    return max(float(rank.communicate(timeout=60)[0]) for rank in ranks) - start_s


def tahoe(run: Path, attempt: int, *arguments: str) -> tuple[float, str]:
    """Return the seconds to the first step of an attempt, and what the log says of them."""
    command = [sys.executable, "-m", "orchestrator.cli.main", *arguments]
    start_s = time.time()
    subprocess.run(command, stdout=subprocess.DEVNULL, timeout=120, check=True)
    ends, said = [], ""
    for log in (run / "logs" / f"attempt-{attempt:04d}").glob("rank-*.log"):
        (line,) = re.findall(r".*first step after.*", log.read_text())
        when, said = line[:23].replace(",", "."), line.partition("after ")[2]
        ends.append(datetime.fromisoformat(when).timestamp())
    return max(ends) - start_s, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    num_rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as place:
        digits, taken = Path(place, "digits"), {"bare": [], "launch": [], "resume": []}
        make = [sys.executable, "-m", "orchestrator.cli.main", "shard", "digits", str(digits)]
        subprocess.run(make, stdout=subprocess.DEVNULL, check=True)
        told = {}
        for number in range(num_rounds):
            run = Path(place, f"run-{number}")
            options = [f"data.url={digits}", f"run_dir={run}", "tracking=none"]
            options += [
                f"launcher.nproc_per_node={NUM_RANKS}",
                "recipe.steps=2",
                "model=timm/resnet18",
            ]
            longer = ("--schedule", "restart")
            taken["bare"].append(bare(digits))
            seconds, told["launch"] = tahoe(run, 1, "train", *options)
            taken["launch"].append(seconds)
            seconds, told["resume"] = tahoe(run, 2, "resume", str(run), "recipe.steps=4", *longer)
            taken["resume"].append(seconds)
    print(f"{platform.machine()}, {os.cpu_count()} cores, {NUM_RANKS} ranks, {num_rounds} rounds")
    least = statistics.median(taken["bare"])
    for name, seconds in taken.items():
        middle = statistics.median(seconds)
        print(f"{name:8} {middle:.2f} s  +{middle - least:.2f}  {told.get(name, '')}")


if __name__ == "__main__":
    main()
