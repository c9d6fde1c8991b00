"""What runs came to, read from their directories, to be compared."""

from orchestrator.run.rundir import RunDir, read_json_lines


def weights(run: RunDir, step: int) -> dict[str, bytes]:
    """Return every file of a checkpoint."""
    directory = run.checkpoints_dir / f"step-{step:09d}"
    return {file.name: file.read_bytes() for file in sorted(directory.iterdir())}


def global_batches(run: RunDir) -> dict[int, list[int]]:
    """Return the sample ids of each step, by micro-batch; what was done again is done the same."""
    micro_batches: dict[tuple[int, int], list[int]] = {}
    for file in sorted(run.path.glob("logs/attempt-*/samples-*.jsonl")):
        for line in read_json_lines(file):
            name = (line["step"], line["micro"])
            assert micro_batches.setdefault(name, line["ids"]) == line["ids"]
    steps = {step for step, _ in micro_batches}
    return {s: [i for m in range(4) for i in micro_batches[s, m]] for s in sorted(steps)}


def figures(run: RunDir, *names: str) -> dict[tuple[int, str], set[float]]:
    """Return all values that were logged of each figure at each step."""
    values: dict[tuple[int, str], set[float]] = {}
    for record in read_json_lines(run.metrics_file):
        for name in names:
            if name in record["metrics"]:
                values.setdefault((record["step"], name), set()).add(record["metrics"][name])
    return values
