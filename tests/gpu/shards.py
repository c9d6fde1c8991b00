"""Training from shards of photographs: images a second, MFU, and the time spent waiting for data.

The photographs are crops of scikit-learn's two, as JPEGs of ImageNet's usual size.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bits import train
from session import Session
from speed import QUICK, RESNET, VIT, Load, peak_tflops

SIZE = (500, 375)


def measure_shards(session: Session) -> None:
    """Write the shards; train ResNet-50 and ViT-B from them with the whole product."""
    count = 64 if session.is_quick else 4096
    url = session.directory / "photographs"
    if session.run("write photographs", lambda: write_photographs(url, count)) is None:
        return
    for load in [QUICK] if session.is_quick else [RESNET, VIT]:
        name = load.model.partition("/")[2]
        run_dir = session.directory / "runs" / f"shards-{name}"
        session.run(f"{name} from shards", lambda load=load, run_dir=run_dir: _train(  # type: ignore[misc]
            load, session, url, run_dir
        ))  # fmt: skip


def write_photographs(url: Path, count: int) -> dict[str, float]:
    """Write so many JPEGs of ten classes, and shards of them."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_images

    from data_sharding.sources.folder import folder
    from data_sharding.writing.dataset_writer import write_dataset

    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    root = url.with_name("jpegs")
    for name in range(10):
        (root / f"class{name}").mkdir(parents=True, exist_ok=True)

    def write(number: int) -> int:
        random = np.random.default_rng(number)
        scale, photograph = random.uniform(0.5, 0.78), photographs[number % 2]
        width, height = (round(scale * side) for side in photograph.size)
        x, y = (
            random.integers(photograph.width - width),
            random.integers(photograph.height - height),
        )
        file = root / f"class{number % 10}" / f"{number:06d}.jpg"
        box = (int(x), int(y), int(x) + width, int(y) + height)
        photograph.resize(SIZE, box=box).save(file, quality=90)
        return file.stat().st_size

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sizes = list(pool.map(write, range(count)))
    write_dataset(folder(root, 0.05), str(url), seed=0, samples_per_shard=512)
    return {"kB an image": sum(sizes) / count / 1000}


def _train(load: Load, session: Session, url: Path, run_dir: Path) -> dict[str, float]:
    import torch

    is_cuda = session.device == "cuda"
    peak = peak_tflops(torch.cuda.get_device_name()) if is_cuda else None
    num_workers = 1 if session.is_quick else max(1, (os.cpu_count() or 2) - 2)
    every, steps = (1, 2) if session.is_quick else (20, 60)
    perf = train(
        [
            *(
                f"run_dir='{run_dir}'",
                "tracking=none",
                f"recipe={load.recipe}",
                f"recipe.steps={steps}",
            ),
            *("data=shards", f"data.url='{url}'", f"data.image_size={load.image_size}"),
            *(
                f"data.eval_protocol=center-{load.image_size}-of-{load.image_size}",
                f"model={load.model}",
            ),
            *("recipe.precision=bf16", f"recipe.global_batch_size={load.batch}"),
            *(f"logging.every_steps={every}", f"data.num_workers={num_workers}"),
            *("checkpoint.every_steps=1000000", "evaluate.every_epochs=1000000"),
            *(f"runtime.device={session.device}", "runtime.deterministic=false"),
            f"runtime.peak_tflops_per_device={'null' if peak is None else peak}",
        ]
    )
    names = ("images_per_s", "data_wait_fraction", "tflops", "mfu", "gpu_mem_peak_gb")
    return {name: perf[f"perf/{name}"] for name in names if f"perf/{name}" in perf} | {
        "workers": float(num_workers)
    }
