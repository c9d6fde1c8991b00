"""The crops of a batch are those of its images, one by one."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from data_sharding.transforms.crops import NUM_RANDOMS
from data_sharding.transforms.padded_crop import PaddedCrop


@given(
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(0, 12),
    st.sampled_from((1, 3)),
    st.integers(0, 99),
)
def test_a_batch_is_cut_as_its_images_are(num, size, padding, channels, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (num, size, size, channels), dtype=np.uint8)
    randoms = rng.random((num, NUM_RANDOMS))
    crop, out = PaddedCrop(padding, 0.5), np.empty_like(images)
    crop.cut(images, randoms, out)
    for image, draws, cut in zip(images, randoms, out, strict=True):
        spec = crop(size, size, draws)
        x, y = (max(-size, min(shift, size)) for shift in spec.shift)
        expected = F.pad(torch.from_numpy(image).permute(2, 0, 1), (-x, x, -y, y))
        expected = expected.flip(2) if spec.flip else expected
        assert np.array_equal(cut, expected.permute(1, 2, 0).numpy())
