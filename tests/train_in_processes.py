"""Train for two epochs, alone or with the other processes of a launch, and write what each process ends with.

    python train_in_processes.py PHANTOMS OUT
    torchrun --nproc-per-node 2 train_in_processes.py PHANTOMS OUT

PHANTOMS: of 64 px. OUT: a folder for `<number>of<processes>.npz`.
"""
import sys
from pathlib import Path

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.data.transforms import IndexSplitter
from fastai.losses import BCEWithLogitsLossFlat
from fastai.metrics import accuracy_multi
from fastai.torch_core import num_distrib, rank_distrib, set_seed

from protein_atlas.data.labels import read_labels
from protein_atlas.train.learner import rgby_learner
from protein_atlas.vision.data import oversampled_dataloaders, protein_datablock
from protein_atlas.vision.devices import of_all_processes
from protein_atlas.vision.metrics import MacroF1
from protein_atlas.vision.models import small_resnet


class FrozenNorms(Callback):
    """Batch normalisation by what it knows, not by the batch: so that the parts of a batch do not differ from the
    whole."""

    def before_train(self):
        for module in self.model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()


class Seen(Callback):
    """The targets that this process trained on, batch by batch; of the whole batches that it judged by."""

    order = 20

    def __init__(self):
        self.trained, self.judged = [], []

    def after_loss(self):
        (self.trained if self.training else self.judged).append(self.yb[0].numpy().copy())


def main(phantoms: Path, out: Path) -> None:
    table = read_labels(phantoms / "train.csv")
    set_seed(rank_distrib(), reproducible=True)  # other weights and another order in each, but for those of the first
    block = protein_datablock(phantoms / "train", table.vocab, splitter=IndexSplitter(range(33)), batch_tfms=[])
    dls = oversampled_dataloaders(block, table, bs=16, num_workers=2)
    learn = rgby_learner(
        dls, small_resnet, pretrained=False, loss_func=BCEWithLogitsLossFlat(), metrics=[MacroF1(0.1), accuracy_multi],
        head_kwargs={"ps": 0.0}, precision="fp32", cbs=[FrozenNorms(), seen := Seen()],
    )  # fmt: skip
    with learn.distrib_ctx(), learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, 3e-3)
    with learn.distrib_ctx(), learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, 3e-3)
        values, losses = np.array(learn.recorder.values), np.array(learn.recorder.losses)
        scores, targets = learn.get_preds()
        numbers = of_all_processes(rank_distrib())
    assert type(learn.model) is torch.nn.Sequential and all(dl.part == (0, 1) for dl in learn.dls.loaders)
    weights = {f"weights.{name}": value.numpy() for name, value in learn.model.state_dict().items()}
    np.savez(
        out / f"{rank_distrib()}of{max(1, num_distrib())}.npz", values=values, numbers=numbers, scores=scores,
        targets=targets, judged=np.concatenate(seen.judged[: len(learn.dls.valid)]),
        trained=np.concatenate(seen.trained), trained_sizes=[len(batch) for batch in seen.trained], losses=losses,
        **weights,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
