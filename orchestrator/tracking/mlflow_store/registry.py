"""Register a checkpoint of a run as a model in MLflow: safetensors inside, no pickle."""

import json
import re
import tempfile
from collections.abc import Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray

import models
from data_sharding.format.manifest import Manifest, read_manifest
from data_sharding.loading.loader import iter_batches
from models import pyfunc
from orchestrator.checkpoint.retention import select_checkpoint
from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.config.parse import parse
from orchestrator.config.schema import Config
from orchestrator.metrics import MAIN_METRICS
from orchestrator.redact import one_line_error
from orchestrator.run.rundir import RunDir, RunError, read_json_lines
from orchestrator.tracking.mlflow_store.run import get_or_create_run
from orchestrator.training.inputs.class_names import own_classes
from orchestrator.training.inputs.datasets import open_eval_set

_REQUIREMENTS = ("torch", "torchvision", "timm", "safetensors", "numpy")


class ModelVersion(NamedTuple):
    """A registered model; `uri` is for mlflow.pyfunc.load_model."""

    uri: str
    name: str
    version: str
    step: int


def register(run: RunDir, name: str | None = None, step: int | None = None) -> ModelVersion:
    """Register a checkpoint of a run as a version of a model.

    Args:
        name: the name of the model; None for that of the network and the data.
        step: the step of the checkpoint; None for the best one, or the newest if none was
            evaluated.
    """
    config = parse(run.read_config())
    if config.recipe.loss == "model":
        raise RunError(
            f"{run.path} was trained without labels, so it predicts no classes", value=str(run.path)
        )
    store = CheckpointStore.for_run(run, config)
    manifest = select_checkpoint(store, config.checkpoint, step)
    data, classes = read_manifest(config.data.location, "val"), own_classes(run)
    name = name or re.sub(r"[^\w.-]", "-", f"{config.model.name}-{config.data.name}")
    example = _example(config, data)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary) / "network"
        directory.mkdir()
        metadata = json.dumps(_network_metadata(config, classes, run, data), indent=2)
        (directory / pyfunc.NETWORK).write_text(metadata)
        with store.open(manifest.step, [manifest.weights_file()]) as parts:
            (directory / pyfunc.WEIGHTS).write_bytes(parts[manifest.weights_file()].read_bytes())
        try:
            return _log(
                run,
                config,
                name,
                manifest.step,
                data_path=str(directory),
                signature=_signature(example, len(classes)),
                input_example=example,
            )
        except (MlflowException, OSError) as error:
            raise RunError(
                f"{run.path} was not registered: {one_line_error(error)}. The run is unchanged",
                value=str(run.path),
                hint="Try again when the server can be reached.",
            ) from error


def _log(run: RunDir, config: Config, name: str, step: int, **files: Any) -> ModelVersion:
    tracked = get_or_create_run(run, run.read_config())
    mlflow.set_tracking_uri(config.tracking.uri)
    mlflow.set_experiment(experiment_id=tracked.experiment_id)  # where its artifacts go
    info = Model.log(
        artifact_path=None,
        name="model",
        flavor=mlflow.pyfunc,
        run_id=tracked.run_id,
        registered_model_name=name,
        step=step,
        loader_module=pyfunc.__name__,
        code_paths=[str(Path(models.__file__).parent)],
        pip_requirements=[f"{package}=={version(package)}" for package in _REQUIREMENTS],
        metadata={
            "tahoe.run_id": run.id,
            "tahoe.step": step,
            "protocol": config.data.eval_protocol,
        },
        **files,
    )
    number = str(info.registered_model_version)
    tracked.client.update_model_version(name, number, _version_description(run, config, step))
    return ModelVersion(f"models:/{name}/{number}", name, number, step)


def _version_description(run: RunDir, config: Config, step: int) -> str:
    """Describe the origin and the metrics of a model for its page in MLflow."""
    evaluations = [
        line["metrics"]
        for line in read_json_lines(run.metrics_file)
        if line.get("step") == step and not line.get("metrics", {}).keys().isdisjoint(MAIN_METRICS)
    ]
    results = ""
    if evaluations:
        metrics = [f"{k[4:]} {v:.6g}" for k, v in evaluations[-1].items() if "val/" in k]
        results = f" Under {config.data.eval_protocol}: {', '.join(metrics)}."
    return f"{config.model.name} on {config.data.name}: step {step} of {run.id}.{results}"


def _network_metadata(
    config: Config, classes: Sequence[str], run: RunDir, data: Manifest
) -> dict[str, Any]:
    is_multi = data.labels.kind == "multi"  # a probability for each class, by itself
    return {
        **({"activation": "sigmoid"} if is_multi else {}),
        "name": config.model.name,
        "options": config.model.kwargs,
        "classes": classes,
        "channels": config.data.in_channels,
        "image_size": config.data.image_size,
        "mean": list(config.data.mean),
        "std": list(config.data.std),
        "protocol": config.data.eval_protocol,
        "run": run.id,
    }


def _signature(example: NDArray[np.uint8], num_classes: int) -> ModelSignature:
    images = TensorSpec(np.dtype(np.uint8), (-1, *example.shape[1:]))
    return ModelSignature(
        Schema([images]), Schema([TensorSpec(np.dtype(np.float32), (-1, num_classes))])
    )


def _example(config: Any, data: Manifest) -> NDArray[np.uint8]:
    """Read the first validation image, or its first view: (1, size, size, channels)."""
    single = config.replace({"evaluate.batch_size": 1})
    with closing(iter_batches(open_eval_set(single, "val", data), [0], 0)) as batches:
        return next(batches).images[:1].permute(0, 2, 3, 1).numpy().copy()
