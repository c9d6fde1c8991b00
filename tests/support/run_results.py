"""What runs came to, read from their directories, to be compared."""

from orchestrator.run.rundir import RunDir, read_json_lines


def weights(run: RunDir, step: int) -> dict[str, bytes]:
    """Return every file of a checkpoint."""
    directory = run.checkpoints_dir / f"step-{step:09d}"
    return {file.name: file.read_bytes() for file in sorted(directory.iterdir())}


def global_batches(run: RunDir) -> dict[int, list[int]]:
    """Return the sample ids of each step, by micro-batch; what was done again is done the same."""
    steps: dict[int, dict[tuple[int, int], int]] = {}
    for file in sorted(run.path.glob("logs/attempt-*/samples-*.jsonl")):
        for line in read_json_lines(file):
            samples = steps.setdefault(line["step"], {})
            for row, sample in enumerate(line["ids"], line["first_row"]):
                assert samples.setdefault((line["micro"], row), sample) == sample
    return {step: [samples[at] for at in sorted(samples)] for step, samples in steps.items()}


def figures(run: RunDir, *names: str) -> dict[tuple[int, str], set[float]]:
    """Return all values that were logged of each figure at each step."""
    values: dict[tuple[int, str], set[float]] = {}
    for record in read_json_lines(run.metrics_file):
        for name in names:
            if name in record["metrics"]:
                values.setdefault((record["step"], name), set()).add(record["metrics"][name])
    return values
