"""The labels of a data set against the loss and the metrics of a config."""

from data_sharding.format.manifest import Manifest
from orchestrator.config.parse import ConfigError
from orchestrator.config.schema import Config
from orchestrator.metrics import MULTI_LABEL_METRICS, SINGLE_LABEL_METRICS
from orchestrator.run.train_data import TrainData

_LOSSES = {  # by the kind of labels; a network's own loss takes any
    "single": ("cross_entropy", "bce"),
    "multi": ("bce",),
    "none": (),
}
_SCORE_BYTES = 5  # of an image and a class: a float32 and a bool
_MAX_SCORE_BYTES = 16 << 30  # of a rank, in host memory


def check_labels(config: Config, train: TrainData, val: Manifest, world_size: int) -> None:
    """Refuse a loss or a metric that does not fit the labels.

    Raises:
        ConfigError: it does not, or the scores of the validation split do not fit into memory.
    """
    loss, kind = config.recipe.loss, train.labels.kind
    if loss == "model":
        return
    if loss not in _LOSSES[kind]:
        raise ConfigError(
            f"{config.data.location} has {kind} labels ({train.labels}), and recipe.loss={loss} "
            "needs one class for each sample. Nothing was started",
            value=kind,
            hint="Set recipe.loss=bce, which learns each class for itself."
            if kind == "multi"
            else "Index the data set again with another --label, or use recipe.loss=model with a "
            "network that computes its own loss.",
        )
    if config.recipe.class_balanced and kind != "single":
        raise ConfigError(
            f"recipe.class_balanced=true draws classes, and {config.data.location} has {kind} "
            "labels, so its images do not have one class each. Nothing was started",
            value=kind,
            hint="Leave it out. For several labels recipe.bce_pos_weight=auto weighs rare classes.",
        )
    if config.recipe.bce_pos_weight == "auto" and loss == "bce":
        _check_counts(train)
    _check_keep_best(config, kind)
    if kind == "multi":
        check_scores_fit(val, world_size)


def _check_counts(train: TrainData) -> None:
    if train.samples_per_class is None:
        raise ConfigError(
            "recipe.bce_pos_weight=auto needs the number of images that show each class, and the "
            "manifest of the training split does not have it",
            value="auto",
            hint="Give a number, or leave it out: they are counted where images have several "
            "labels. recipe.class_balanced=true draws rare classes more often."
            if train.labels.kind == "single"
            else "Writing or indexing the set counts them: do so again, or give a number.",
        )


def check_scores_fit(manifest: Manifest, world_size: int) -> None:
    """Refuse a split whose scores would not fit into memory: all are kept to rank images by them.

    Raises:
        ConfigError: there are too many images and classes for a rank.
    """
    num_samples, num_classes = manifest.num_samples, len(manifest.classes)
    num_bytes = _SCORE_BYTES * num_samples * num_classes / world_size
    if num_bytes > _MAX_SCORE_BYTES:
        raise ConfigError(
            f"the scores of {num_samples:,} images for {num_classes:,} classes are "
            f"{num_bytes / 1e9:.0f} GB a rank, and at most {_MAX_SCORE_BYTES / 1e9:.0f} GB are "
            "kept for val/map. Nothing was started",
            value=round(num_bytes),
            hint="Take a smaller validation split, or more ranks.",
        )


def _check_keep_best(config: Config, kind: str) -> None:
    name = config.checkpoint.keep_best
    metrics = MULTI_LABEL_METRICS if kind == "multi" else SINGLE_LABEL_METRICS
    if name not in (*metrics, None, "val/top1"):  # the default, which means the main one
        several = "several labels" if kind == "multi" else "one label each"
        raise ConfigError(
            f"checkpoint.keep_best={name}: the images of {config.data.location} have {several}, so "
            "it is not measured and no checkpoint could be the best",
            value=name,
            hint=f"Valid: {', '.join(metrics)} or null.",
        )
