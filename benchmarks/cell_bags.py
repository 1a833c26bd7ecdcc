"""Single cells learned from labels of fields alone: bags, by each pooling, against every cell with its field's label.

    python benchmarks/cell_bags.py                          # 900 fields of 192 px, a third of them to score on
    python benchmarks/cell_bags.py --fields 90 --epochs 1   # only shows that it runs

Phantoms: fields whose labels each show in a share of their cells, at least one, and nobody tells the networks in which;
`cells.csv` has the truth. Cells are cut out by their masks, 64 px, all else black. The baseline is ordinary training on
cells with their field's label, and sees as many cells an epoch as a bag of 8 cells a field does; "truth" trains on what
each cell shows, which nobody has, and is what more than labels of fields could give. "field's label, then log-sum-exp"
is what `train --bags` does: the head of the baseline goes on with bags for three epochs, its body frozen; "field's
label, then field's label" is the baseline in as many steps. All share fields, split, network, steps and, seed by seed,
the first weights of the body and the head; those of the last epoch are scored.

Scored are the cells of fields that nothing was trained on: macro average precision over the labels, mean of the seeds,
95 % intervals by a bootstrap over fields. And these fields, from all of their cells: by the pooling that was trained
with, of networks that know no bags by the mean and by log-sum-exp.
"""

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from fastai.data.transforms import IndexSplitter
from fastai.torch_core import set_seed

from protein_atlas.cells.bags import CellBags
from protein_atlas.cells.crop import CellCrop
from protein_atlas.cells.labels import cell_labels
from protein_atlas.cells.pooling import POOLINGS, CellPooling
from protein_atlas.cells.source import open_cells
from protein_atlas.data.labels import LabelTable, read_labels
from protein_atlas.data.packing import pack_images
from protein_atlas.data.phantoms import simulate_phantoms
from protein_atlas.data.splits import balanced_split
from protein_atlas.data.store import ImageStore
from protein_atlas.evaluate.intervals import difference_interval, score_interval
from protein_atlas.train.bags import bag_learner, cell_pooling, to_bags
from protein_atlas.train.learner import RGBYLearner, rgby_learner
from protein_atlas.vision.data import protein_datablock
from protein_atlas.vision.models import small_resnet

BASELINE, TRUTH, THEN = "field's label", "truth", ", then "
LAST_EPOCHS, LONGER = 3, f"{BASELINE}{THEN}{BASELINE}"  # the baseline in as many steps
METHODS = "with '; ' between; log-sum-exp 8 says r; field's label, then log-sum-exp: three epochs more of the head"


def look(learn: RGBYLearner, store: ImageStore, ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N, K) and features (N, F) of cells."""
    network, found = learn.scoring_network().eval(), []
    with torch.inference_mode():
        for first in range(0, len(ids), 256):
            images = torch.from_numpy(store.read(ids[first : first + 256]))
            found.append([part.numpy() for part in network.both(images)])
    scores, features = (np.concatenate(part).astype(np.float64) for part in zip(*found, strict=True))
    return scores, features


def train(
    method: str, store: ImageStore, fields: LabelTable, labelled: LabelTable, valid: np.ndarray, options, seed: int
) -> tuple[RGBYLearner, list[CellPooling]]:  # fmt: skip
    """A learner trained by a method; and by what its cells' scores become those of fields."""
    quiet = {"metrics": [], "pretrained": options.start == "phantoms" and "phantoms", "precision": "fp32"}
    set_seed(seed)
    method, _, last = method.partition(THEN)
    last = last or None
    if method in (BASELINE, TRUTH):
        of_field = labelled.columns["Field"].isin(fields.ids[valid]).to_numpy()
        block = protein_datablock(store, labelled.vocab, splitter=IndexSplitter(np.flatnonzero(of_field).tolist()),
                                  allow_none=labelled.allow_none)  # fmt: skip
        dls = block.dataloaders(labelled, bs=8 * options.bs, num_workers=0, device="cpu")
        set_seed(seed)  # whatever the loaders drew
        learn, pooled = rgby_learner(dls, small_resnet, **quiet), [CellPooling("mean"), CellPooling("log-sum-exp")]
    else:
        name, _, sharpness = method.partition(" ")
        more = {"sharpness": float(sharpness)} if sharpness else {}
        block = protein_datablock(CellBags(store, 8), fields.vocab, splitter=IndexSplitter(valid.tolist()))
        dls = block.dataloaders(fields, bs=options.bs, num_workers=0, device="cpu")
        set_seed(seed)
        learn, pooled = bag_learner(dls, small_resnet, name, **more, **quiet), []
    learn.logger = lambda _: None
    with learn.no_bar():
        if options.start == "phantoms":
            learn.fine_tune(options.epochs)
        else:
            learn.fit_one_cycle(options.epochs, options.lr)
        if last is not None:  # the body learned from single cells, the head goes on
            if last != BASELINE:
                block = protein_datablock(CellBags(store, 8), fields.vocab, splitter=IndexSplitter(valid.tolist()))
                set_seed(seed)
                to_bags(learn, block.dataloaders(fields, bs=options.bs, num_workers=0, device="cpu"), last)
                pooled = []
            learn.freeze()
            learn.fit_one_cycle(LAST_EPOCHS, 1e-3)
    return learn, pooled or [cell_pooling(learn)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("fields", 900), ("size", 192), ("crop", 64), ("epochs", 10), ("bs", 8), ("seeds", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--start", choices=("random", "phantoms"), default="random", help="weights to start from")
    parser.add_argument("--methods", default="; ".join([BASELINE, *POOLINGS, TRUTH]), help=METHODS)
    parser.add_argument("--out", type=Path, help="a folder for phantoms and scores, which are read from there again")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        folder = options.out or Path(root)
        known, out = folder / "phantoms", folder / f"scores, start {options.start}, {options.epochs} epochs"
        out.mkdir(parents=True, exist_ok=True)
        if not known.exists():
            simulate_phantoms(known, options.fields, options.size, seed=1, min_count=options.fields // 30, masks=True,
                              share=options.share)  # fmt: skip
        cells = open_cells(known, known / "masks", crop=CellCrop(pieces="largest"), pattern="{id}_cell")
        if not (folder / "store").exists():
            pack_images(cells, folder / "store", options.crop)
        store, fields = ImageStore(folder / "store"), read_labels(known / "train.csv")
        truth = read_labels(known / "cells.csv", fields.vocab, allow_none=True)
        given = cell_labels(cells, fields)
        assert truth.ids.tolist() == given.ids.tolist() == cells.ids
        _, valid = balanced_split(fields.targets, 1 / 3, vocab=fields.vocab)
        scored = np.flatnonzero(truth.columns["Field"].isin(fields.ids[valid]).to_numpy())
        ids, of, targets = truth.ids[scored].tolist(), truth.columns["Field"].to_numpy()[scored], truth.targets[scored]
        shown = (truth.targets.sum() / given.targets.sum(), len(ids), len(valid), targets.sum(0).min())
        print("{:.2f} of the cells show a label of their field; scored {} cells of {} fields, the rarest label on {} "
              "cells".format(*shown), flush=True)  # fmt: skip
        scores: dict[str, list[np.ndarray]] = {}
        pooled: dict[tuple[str, str], list[np.ndarray]] = {}
        of_fields = fields.targets[[fields.ids.tolist().index(field) for field in dict.fromkeys(of)]]
        for method in filter(None, options.methods.split("; ")):
            for seed in range(options.seeds):
                kept, begun = out / f"{method} {seed}.npz", time.process_time()
                if not kept.exists():
                    learn, poolings = train(method, store, fields, truth if method == TRUTH else given, valid, options,
                                            seed)  # fmt: skip
                    found, features = look(learn, store, ids)
                    np.savez(kept, cells=found, **{str(way): way.pool(found, of, features)[1] for way in poolings})
                    print(f"{method}, seed {seed}: {time.process_time() - begun:.0f} s", flush=True)
                with np.load(kept) as read:
                    scores.setdefault(method, []).append(read["cells"])
                    for way in set(read.files) - {"cells"}:
                        pooled.setdefault((method, way), []).append(read[way])
        print("\n| trained on | cells, macro AP | against it | in as many steps |\n| --- | --- | --- | --- |")
        for method, found in scores.items():
            own, row = np.stack(found), [str(score_interval(targets, np.stack(found), "macro AP", of))]
            if method != BASELINE and BASELINE in scores:
                base = np.stack(scores[BASELINE])
                row.append(str(difference_interval(targets, own, base, "macro AP", of)))
            if THEN in method and method != LONGER and LONGER in scores:
                row.append(str(difference_interval(targets, own, np.stack(scores[LONGER]), "macro AP", of)))
            print(f"| {method} | {' | '.join(row)} |", flush=True)
        print("\n| trained on | pooled by | fields, macro AP |\n| --- | --- | --- |")
        for (method, way), found in pooled.items():
            print(f"| {method} | {way} | {score_interval(of_fields, np.stack(found), 'macro AP')} |", flush=True)


if __name__ == "__main__":
    main()
