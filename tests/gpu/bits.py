"""Each strategy and precision: four steps, and the last two again from a checkpoint, bit for bit.

The whole product runs: a run directory, the worker, pinned batches, evaluation, checkpoints.
"""

import shutil
from pathlib import Path
from typing import get_args, get_type_hints

from session import Session

STRATEGIES = ("ddp", "ddp_zero1", "fsdp2")
PRECISIONS = ("fp32", "bf16", "fp16")
# Beside every strategy and precision: with DDP in bf16.
VARIANTS = {
    "grad_checkpointing": ["recipe.grad_checkpointing=true"],
    "fused": ["recipe.optimizer.name=adamw", "+recipe.optimizer.kwargs.fused=true"],
    "fsdp2, grad_checkpointing": ["strategy=fsdp2", "recipe.grad_checkpointing=true"],
    "ema, clipping, accumulation": [
        *("recipe.ema_decay=0.9", "recipe.clip_grad_norm=1.0"),
        "runtime.max_images_per_device=16",
    ],
    "contiguous memory": ["recipe.channels_last=false"],
    "read ahead by two processes": ["data.num_workers=2"],
}
COMPILED = {
    "compiled by blocks": "recipe.compile={regional: true, backend: BACKEND}",
    "compiled": "recipe.compile={backend: BACKEND}",
}
SAME = {"ddp_zero1", "grad_checkpointing"}  # the same bits as DDP without


def check_bits(session: Session) -> None:
    """Run every case, or a few if it is quick; compare those that promise it with plain DDP."""
    write_digits(session)
    for precision in ["bf16"] if session.is_quick else PRECISIONS:
        for strategy in STRATEGIES:
            if strategy not in known_strategies():
                session.add(f"{strategy} {precision}", "skipped", 0, {"why": "no such strategy"})
                continue
            case = [f"strategy={strategy}", f"recipe.precision={precision}"]
            like = f"ddp {precision}" if strategy in SAME else None
            check_resume(session, f"{strategy} {precision}", case, like)
    for name in list(VARIANTS)[: 2 if session.is_quick else None]:
        overrides = VARIANTS[name]
        like = "ddp bf16" if name in SAME else None
        check_resume(session, name, ["recipe.precision=bf16", *overrides], like)


def check_compiled_bits(session: Session) -> None:
    """Resume compiled runs: what is compiled again is the same."""
    write_digits(session)
    for name, override in COMPILED.items():
        compiled = override.replace("BACKEND", "aot_eager" if session.is_quick else "inductor")
        check_resume(session, name, ["recipe.precision=bf16", compiled], None)
        if session.is_quick:
            break


def known_strategies() -> tuple[str, ...]:
    from orchestrator.config.strategy import Strategy

    return get_args(get_type_hints(Strategy)["name"])


def write_digits(session: Session) -> None:
    def write() -> None:
        from data_sharding.sources.digits import digits
        from data_sharding.writing.dataset_writer import write_dataset

        write_dataset(digits(), str(session.directory / "digits"), seed=0, samples_per_shard=500)

    if not (session.directory / "digits").exists():
        session.run("write the digits", write)


def check_resume(session: Session, name: str, overrides: list[str], like: str | None) -> None:
    """Train to step 4; remove its checkpoint and its end; train again from step 2; compare.

    Args:
        like: the name of another case, whose weights must be the same.
    """
    path = session.directory / "runs" / name.replace(" ", "_").replace(",", "")
    arguments = [
        *(f"run_dir='{path}'", f"data.url='{session.directory / 'digits'}'", "tracking=none"),
        *(f"runtime.device={session.device}", "data.num_workers=0", "recipe.steps=4"),
        *("checkpoint.every_steps=2", "recipe.schedule.name=constant", "logging.every_steps=1"),
        *("recipe.schedule.warmup_epochs=0", f"model={network(session)}", "model.published=null"),
        *("recipe.global_batch_size=32", "recipe.optimizer.lr=0.01", *overrides),
    ]
    last = path / "checkpoints" / "step-000000004"
    if not session.run(f"{name}: 4 steps", lambda: bool(train(arguments))):
        return
    first = {file.name: file.read_bytes() for file in last.iterdir()}
    shutil.rmtree(last)
    (path / "outcome.json").unlink()
    if not session.run(f"{name}: steps 3 and 4 again", lambda: bool(work(path))):
        return
    again = {file.name: file.read_bytes() for file in last.iterdir()}
    differ = [file for file in first if file != "manifest.json" and first[file] != again.get(file)]
    figures = {"differ": " ".join(differ)} if differ else {}
    if like is not None:
        other = session.directory / "runs" / like.replace(" ", "_") / "checkpoints" / last.name
        figures |= _compare_weights(other, first, like)
    session.add(f"{name}: same bits", "failed" if figures else "ok", 0, figures)


def _compare_weights(other: Path, files: dict[str, bytes], like: str) -> dict[str, str]:
    weights = other / "model.safetensors"
    is_same = weights.exists() and weights.read_bytes() == files["model.safetensors"]
    return {} if is_same else {"unlike": like}


def network(session: Session) -> str:
    return "timm/test_resnet" if session.is_quick else "timm/resnet18"


def train(arguments: list[str]) -> dict[str, float]:
    """Create a run and train it in this process."""
    from orchestrator.launch.compose import compose
    from orchestrator.launch.create_run import create_or_open_run

    (composed,) = compose(arguments)
    run, _ = create_or_open_run(composed)
    return work(run.path)


def work(path: Path) -> dict[str, float]:
    """Continue a run in this process, as its only rank; return its last logged speed."""
    from orchestrator.run.rundir import RunDir, read_json_lines
    from orchestrator.training import worker

    code = worker.main([str(path)])
    if code:
        raise SystemExit(f"the worker ended with exit code {code}")
    records = [record["metrics"] for record in read_json_lines(RunDir(path).metrics_file)]
    return {key: value for record in records for key, value in record.items() if "perf/" in key}
