"""Published figures in MLflow: once each, beside one's own."""

from pathlib import Path

import pytest

from orchestrator.run.rundir import RunError
from orchestrator.tracking.mlflow_store import import_results
from orchestrator.tracking.mlflow_store.client import MlflowClient
from orchestrator.tracking.mlflow_store.import_results import (
    import_runs,
    published_results,
    timm_results,
)
from orchestrator.tracking.records.catalog import load_catalog

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")

RESULTS = """\
model,img_size,top1,top1_err,top5,top5_err,param_count,crop_pct,interpolation
resnet50.a1_in1k,288,81.214,18.786,95.102,4.898,25.56,1.000,bicubic
vit_giant,224,90.0,10.0,99.0,1.0,"1,012.61",0.875,bicubic
"""


def stored(uri):
    client = MlflowClient(tracking_uri=uri)
    (place,) = [x for x in client.search_experiments() if x.name == "tests"]
    return {run.info.run_name: run for run in client.search_runs([place.experiment_id])}


def test_the_shelf(store: str) -> None:
    results = published_results(load_catalog())
    wanted = [one for one in results if one.record.published["year"] in (1998, 2012)]
    assert import_runs(wanted, store, "tests") == (len(wanted), 0)
    assert import_runs(wanted, store, "tests") == (0, len(wanted))
    alexnet = stored(store)["AlexNet, as published"]
    assert alexnet.data.metrics["published/top1_err"] == 40.7
    assert alexnet.data.metrics["val/top1"] == pytest.approx(59.3)
    said = alexnet.data.tags
    assert (said["tahoe.year"], said["tahoe.protocol"], said["published/verified"]) == (
        *("2012", "ten-crop-224-of-256", "true"),
    )
    assert alexnet.info.status == "FINISHED"
    assert len(stored(store)) == len(wanted)


def test_what_was_cut_short_is_filled_and_not_doubled(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_):
        raise KeyboardInterrupt

    (one,) = [
        one
        for one in published_results(load_catalog())
        if one.record.uid == "published:alexnet_2012"
    ]
    with monkeypatch.context() as patch:
        patch.setattr(import_results, "truncate_json", crash)  # after the run is made
        with pytest.raises(KeyboardInterrupt):
            import_runs([one], store, "tests")
    assert import_runs([one], store, "tests") == (1, 0)
    (run,) = stored(store).values()
    assert run.data.metrics["published/top1_err"] == 40.7


def test_results_of_timm(store: str, tmp_path: Path) -> None:
    file = tmp_path / "results-imagenet.csv"
    file.write_text(RESULTS)
    assert import_runs(timm_results(str(file)), store, "tests") == (2, 0)
    found = stored(store)
    small = found["resnet50.a1_in1k at 288, by timm"]
    assert small.data.metrics["val/top1"] == 81.214
    assert small.data.tags["tahoe.protocol"] == "center-288-of-288"
    large = found["vit_giant at 224, by timm"]
    assert large.data.metrics["model/num_params"] == pytest.approx(1.01261e9)
    assert large.data.tags["tahoe.protocol"] == "center-224-of-256"


@pytest.mark.parametrize(
    ("text", "message"), [(None, "cannot be read"), ("a,b\n1,2\n", "not a results file of timm")]
)
def test_what_is_no_results_file(tmp_path: Path, text, message) -> None:
    file = tmp_path / "results-imagenet.csv"
    if text:
        file.write_text(text)
    with pytest.raises(RunError, match=message):
        list(timm_results(str(file)))


def test_results_on_other_images_are_not_imagenets(store: str, tmp_path: Path) -> None:
    for name in ("results-imagenet-real.csv", "results-imagenet.csv"):
        (tmp_path / name).write_text(RESULTS)
        assert import_runs(timm_results(str(tmp_path / name)), store, "tests") == (2, 0)
    found = stored(store)
    assert found["vit_giant at 224, by timm"].data.tags["tahoe.data"] == "imagenet"
    real = found["vit_giant at 224 on imagenet-real, by timm"]
    assert real.data.tags["tahoe.data"] == "imagenet-real"
    (tmp_path / "mine.csv").write_text(RESULTS)
    with pytest.raises(RunError, match="does not name the images"):
        list(timm_results(str(tmp_path / "mine.csv")))
    (tmp_path / "results-imagenet.csv").write_text(RESULTS.replace("288", ""))
    with pytest.raises(RunError, match=r"line \d+: a cell is empty"):
        list(timm_results(str(tmp_path / "results-imagenet.csv")))
    with pytest.raises(RunError, match="cannot be read"):
        list(timm_results("nosuchscheme://results-imagenet.csv"))
