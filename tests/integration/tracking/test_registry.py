"""A registered model says what the run's network says, and no pickle is in it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from cli_runner import Tahoe

import conf
import models
from orchestrator.tracking.mlflow_store.client import MlflowClient

# MLflow 3.17 uses what SQLAlchemy 2.1 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
# The model brings the code that it needs.
LOAD = """
import sys, json, mlflow, numpy
mlflow.set_tracking_uri("sqlite:///mlflow.db")
model = mlflow.pyfunc.load_model(sys.argv[1])
assert "/artifacts/code/models/" in sys.modules["models.pyfunc"].__file__
print(json.dumps(model.predict(numpy.load("images.npy")).tolist()))
"""


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_model_of_a_run(tmp_path: Path) -> None:
    tahoe = Tahoe(tmp_path)
    tahoe("shard", "digits", "datasets/digits")
    tahoe("train", "recipe.epochs=1", "run_dir=run", "logging.plots=false")
    told = tahoe("register", "run", "--name", "reader of digits").stdout
    assert "version 1 of reader of digits is step" in told
    assert "version 2" in tahoe("register", "run", "--name", "reader of digits").stdout

    made, _ = sorted(tmp_path.glob("mlartifacts/models/*/artifacts"))
    assert not [file for file in made.rglob("*") if file.suffix in (".pkl", ".pt", ".pth")]
    described = json.loads((made / "data" / "network" / "network.json").read_text())
    assert described["classes"] == [str(i) for i in range(10)]

    (example,) = made.rglob("serving_input_example.json")
    (image,) = json.loads(example.read_text())["inputs"]
    assert np.shape(image) == (32, 32, 1)
    assert np.std(image) > 20  # a digit is seen
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    told = client.get_model_version("reader of digits", "1").description
    assert told.startswith("lenet5_1998 on digits: step 11 of run. Under center-32-of-32: top1 ")

    images = torch.randint(0, 256, (5, 32, 32, 1), dtype=torch.uint8)
    np.save(tmp_path / "images.npy", images.numpy())
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-P", "-c", LOAD, "models:/reader of digits/1"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    network = models.build("lenet5_1998", num_classes=10, in_channels=1)
    (weights,) = made.rglob("model.safetensors")
    network.load_state_dict(safetensors.torch.load_file(weights))
    digits = yaml.safe_load((Path(conf.__file__).parent / "data" / "digits.yaml").read_text())
    normalised = (images.permute(0, 3, 1, 2) / 255 - digits["mean"][0]) / digits["std"][0]
    expected = network.eval()(normalised).softmax(1)
    assert torch.allclose(torch.tensor(json.loads(done.stdout)), expected, atol=1e-5)


@pytest.mark.slow
def test_what_cannot_be_registered(tmp_path: Path) -> None:
    refused = Tahoe(tmp_path)("register", "nowhere", check=False)
    assert refused.returncode == 1
    assert "no run at" in refused.stderr
