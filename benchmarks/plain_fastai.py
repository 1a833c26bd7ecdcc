"""The pipeline that a fastai user writes, to compare the library with: `recipe.py` trains it beside its recipes.

A `DataBlock` of tensors and multi-hot targets, `aug_transforms` with flips both ways, `Normalize` by a batch, binary
cross entropy, `fit_one_cycle`; the same network, head and epochs, and nothing else of the library than its images as
arrays. The first convolution is made for the channels, since from random weights there is nothing to copy.
"""

import numpy as np
import torch
from fastai.callback.schedule import Learner  # with fit_one_cycle
from fastai.data.block import DataBlock, MultiCategoryBlock, TransformBlock
from fastai.data.transforms import IndexSplitter, IntToFloatTensor, Normalize
from fastai.losses import BCEWithLogitsLossFlat
from fastai.torch_core import set_seed
from fastai.vision.augment import aug_transforms
from fastai.vision.core import TensorImage
from fastai.vision.learner import add_head
from torch import nn

from protein_atlas.vision.models import small_resnet


def plain_scores(data, of, valid: np.ndarray, seed: int) -> np.ndarray:
    """Scores (N, K) of the rows `valid`, by a network trained on all others. data, of: as in `recipe.py`."""
    set_seed(seed)
    images = [data.store.open(image_id) for image_id in data.table.ids]
    block = DataBlock(
        blocks=(TransformBlock(batch_tfms=IntToFloatTensor(div=float(data.store.layout.white))),
                MultiCategoryBlock(encoded=True, vocab=list(data.table.vocab))),
        get_x=lambda row: TensorImage(torch.from_numpy(images[row])),
        get_y=lambda row: data.table.targets[row].astype(np.float32),
        splitter=IndexSplitter(valid.tolist()),
        batch_tfms=[*aug_transforms(flip_vert=True)],
    )  # fmt: skip
    dls = block.dataloaders(list(range(len(images))), bs=32, num_workers=0)
    x, _ = dls.one_batch()
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True) + 1e-7
    dls.add_tfms([Normalize(mean, std)], "after_batch")
    set_seed(seed)
    body = nn.Sequential(*list(small_resnet().children())[:-3])
    body[0][0] = nn.Conv2d(len(of.channels), 16, 5, 2, 2, bias=False)
    learn = Learner(dls, add_head(body, 128, len(data.table.vocab)), BCEWithLogitsLossFlat())
    learn.logger = lambda _: None
    with learn.no_bar():
        learn.fit_one_cycle(of.epochs, 3e-3)
        scores, _ = learn.get_preds(dl=dls.valid)
    return scores.numpy().astype(np.float64)
