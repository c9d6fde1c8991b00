"""What recipes say in the words of one library, against another's."""

from pathlib import Path

import pytest
import yaml
from timm.data.auto_augment import LEVEL_TO_ARG
from torchvision.transforms import v2

import conf

FILES = sorted(Path(conf.__file__).parent.glob("recipe/*.yaml"))
RANDOM_POLICIES = {
    file.stem: recipe["augment"]["auto_augment_kwargs"]
    for file in FILES
    if (recipe := yaml.safe_load(file.read_text())).get("augment", {}).get("auto_augment")
    == "randaugment"
}


@pytest.mark.parametrize("name", RANDOM_POLICIES)
def test_a_magnitude_is_what_its_source_means_by_it(name: str) -> None:
    # Papers and timm count to 10. torchvision counts to one less than its number of bins, 31.
    policy = v2.RandAugment(**RANDOM_POLICIES[name])
    for op in ("Rotate", "ShearX"):
        values, _ = policy._AUGMENTATION_SPACE[op]
        ours = values(policy.num_magnitude_bins, 224, 224)[policy.magnitude]
        (theirs,) = LEVEL_TO_ARG[op](RANDOM_POLICIES[name]["magnitude"], {})
        assert abs(theirs) == pytest.approx(float(ours), rel=1e-5)


# Whose authors' code decays over the steps after the warm-up: BEiT's, ConvNeXt's and EVA-02's
# utils.py, MAE's (and ConvNeXt V2's) lr_sched.py, Swin's config.py, torchvision's train.py, ViT's
# vit_jax/utils.py, SoViT's big_vision/utils.py, NFNet's optim.py.
DECAY_AFTER_WARMUP = {
    *("beit_2021", "convnext", "convnextv2_2023", "eva02_2023", "nfnet_2021"),
    *("mae_finetune", "sovit_2023", "swin_2021", "torchvision_v2", "vit_2020"),
}


def test_the_decay_begins_where_its_source_lets_it_begin() -> None:
    recipes = {file.stem: yaml.safe_load(file.read_text()) for file in FILES}
    found = {
        name for name, recipe in recipes.items() if recipe.get("schedule", {}).get("warmup_prefix")
    }
    assert found == DECAY_AFTER_WARMUP
