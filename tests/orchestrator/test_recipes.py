"""What recipes say in the words of one library, against another's."""

from pathlib import Path

import pytest
import yaml
from timm.data.auto_augment import LEVEL_TO_ARG
from torchvision.transforms import v2

import conf

FILES = sorted(Path(conf.__file__).parent.glob("recipe/*.yaml"))
RANDOM_POLICIES = {
    file.stem: recipe["distort"]["policy_options"]
    for file in FILES
    if (recipe := yaml.safe_load(file.read_text())).get("distort", {}).get("policy")
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
