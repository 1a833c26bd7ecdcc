"""Batch augmentation against images one at a time: the same for the same draw, distributed as promised."""
import numpy as np
import torch
from fastai.torch_core import set_seed
from scipy.ndimage import map_coordinates
from scipy.stats import chisquare, kstest, pearsonr

from protein_atlas.data.geometry import d4
from protein_atlas.vision.augment import RandomAffineGain, RandomD4, affine_gain
from protein_atlas.vision.core import TensorRGBY


def one_image(image: np.ndarray, angle: float, zoom: float, shift: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """One image turned, enlarged, moved and brightened by SciPy, in pixels, pixel by pixel from the inverse map."""
    height, width = image.shape[1:]
    y, x = np.mgrid[:height, :width].astype(float)
    y, x = y - (height - 1) / 2 - shift[1] * height, x - (width - 1) / 2 - shift[0] * width
    cos, sin = np.cos(np.deg2rad(angle)) / zoom, np.sin(np.deg2rad(angle)) / zoom
    places = sin * x + cos * y + (height - 1) / 2, cos * x - sin * y + (width - 1) / 2
    moved = np.stack([map_coordinates(plane, places, order=1, mode="reflect") for plane in image])
    return np.clip(moved * gain, 0, 1)


def test_batch_is_what_each_image_alone_becomes():
    set_seed(0)
    batch = torch.rand(6, 3, 20, 28)
    transform = RandomAffineGain(rotate=40, zoom=0.3, shift=0.2, gain=0.4)
    drawn = transform.draw(6, 3)
    found = affine_gain(batch, **drawn).numpy()
    for row in range(6):
        alone = {name: values[row].numpy() for name, values in drawn.items()}
        np.testing.assert_allclose(found[row], one_image(batch[row].numpy(), **alone), atol=2e-4)


def test_draws_have_the_promised_distribution():
    set_seed(1)
    drawn = RandomAffineGain(rotate=30, zoom=0.2, shift=0.1, gain=0.4).draw(4000, 2)
    uniform = {
        "angle": drawn["angle"] / 30, "zoom": drawn["zoom"].log() / 0.2, "right": drawn["shift"][:, 0] / 0.1,
        "down": drawn["shift"][:, 1] / 0.1, "gain 0": drawn["gain"][:, 0].flatten().log() / 0.4,
        "gain 1": drawn["gain"][:, 1].flatten().log() / 0.4,
    }  # fmt: skip
    for name, values in uniform.items():
        assert kstest(values.numpy(), "uniform", args=(-1, 2)).pvalue > 0.001, name
    names = list(uniform)
    for i, first in enumerate(names):  # independent: of each other, and from one image to the next
        assert pearsonr(uniform[first][1:], uniform[first][:-1]).pvalue > 0.001, first
        for second in names[:i]:
            assert pearsonr(uniform[first], uniform[second]).pvalue > 0.001, (first, second)


def test_symmetries_are_drawn_evenly_and_exact():
    set_seed(2)
    image = torch.randint(0, 256, (4, 7, 7), dtype=torch.uint8)
    turned = RandomD4()(TensorRGBY(image.repeat(8000, 1, 1, 1)), split_idx=0).as_subclass(torch.Tensor)
    counts = [int((turned == d4(image, element)).flatten(1).all(1).sum()) for element in range(8)]
    assert sum(counts) == 8000
    assert chisquare(counts).pvalue > 0.001, counts
