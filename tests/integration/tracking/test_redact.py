"""No secret leaves, and every name and value fits."""

from pathlib import Path

import pytest

from orchestrator.redact import mlflow_safe_name, one_line_error, redact, redact_urls, truncate_json
from orchestrator.run.rundir import RunDir
from orchestrator.tracking.mlflow_store import run_metadata


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://me:pass@host:5000/a?b=c", "https://host:5000/a?b=c"),
        ("s3+https://me@bucket/train", "s3+https://bucket/train"),
        ("postgresql://me:p@ss:word@db/mlflow", "postgresql://db/mlflow"),
        ("see http://a:b@c and http://d:e@f.", "see http://c and http://f."),
        ("https://x/y?sv=1&sig=abc%3D&se=2", "https://x/y?sv=1&sig=***&se=2"),
        ("https://x/y?X-Amz-Signature=abc", "https://x/y?X-Amz-Signature=***"),
        ("https://x/user@example", "https://x/user@example"),
        ("mail me@example.org", "mail me@example.org"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
    ],
)
def test_urls_lose_their_secrets(text, clean) -> None:
    assert redact_urls(text) == clean


def test_secrets_by_name_are_hidden_and_the_rest_stays() -> None:
    config = {
        "options": {"class_token": True, "num_tokens": 5, "global_pool": "token"},
        "storage": {"secret": "x", "aws_access_key": "y", "urls": ["s3://u:p@b/1", 2, None]},
    }
    assert redact(config) == {
        "options": {"class_token": True, "num_tokens": 5, "global_pool": "token"},
        "storage": {"secret": "***", "aws_access_key": "***", "urls": ["s3://b/1", 2, None]},
    }


def test_values_are_json_except_strings_and_are_cut_visibly() -> None:
    values = ("adam", "", None, True, 1e-5, [1, "a", None], {})
    texts = ["adam", "", "null", "true", "1e-05", '[1, "a", null]', "{}"]
    assert [truncate_json(value, 20) for value in values] == texts
    assert truncate_json("x" * 30, 20) == "x" * 19 + "…"


@pytest.mark.parametrize(
    ("name", "legal"),
    [("a/b.c-d e:f", "a/b.c-d e:f"), ("a\n$b", "a__b"), ("//a/./../b/", "a/b"), ("", "_"),
     ("..", "_"), ("..a", "a"), ("é/ß", "é/ß"), ("x" * 300, "x" * 250)],
)  # fmt: skip
def test_names(name, legal) -> None:
    assert mlflow_safe_name(name) == legal


def test_params_are_the_config_without_what_others_published() -> None:
    config = {
        "seed": 3,
        "model": {"name": "alexnet", "kwargs": {}, "published": {"top1_err": 40.7}},
        "recipe": {"rates": [0.1, 0.01], "ema": None, "mixup": {"cutmix": 1.0}},
    }
    assert run_metadata.run_params(config) == {
        "seed": "3",
        "model.name": "alexnet",
        "model.kwargs": "{}",
        "recipe.rates": "[0.1, 0.01]",
        "recipe.ema": "null",
        "recipe.mixup.cutmix": "1.0",
    }


def test_published_figures_are_numbers_or_tags(tmp_path: Path) -> None:
    said = {"year": 2012, "top1_err": 40.7, "gmacs": None, "verified": False, "source": "paper"}
    config = {"model": {"name": "alexnet", "published": said}}
    assert run_metadata.published(config) == {"published/top1_err": 40.7}
    tags = run_metadata.run_tags(RunDir(tmp_path), config)
    assert tags["tahoe.year"] == "2012"
    assert tags["published/verified"] == "false"
    assert tags["published/source"] == "paper"


def test_a_bare_run_directory_says_what_it_can(tmp_path: Path) -> None:
    tags = run_metadata.run_tags(RunDir(tmp_path), {"model": None, "data": "odd"})
    assert tags == {"tahoe.run_dir": str(tmp_path), "tahoe.attempts": "0"}
    assert run_metadata.run_params({"model": None}) == {"model": "null"}


def test_of_a_long_error_the_beginning_and_the_end_stay() -> None:
    error = OSError(f"cannot send https://me:pass@host/{'x' * 2000}: certificate verify failed")
    told = one_line_error(error)
    assert told.startswith("cannot send https://host/xxx")
    assert told.endswith("xxx: certificate verify failed")
    assert len(told) < 420
    assert one_line_error(OSError()) == "OSError()"
