"""The poolings of `benchmarks/cell_bags.py` on a body that is not trained: heads on features of cells, minutes for all.

    python benchmarks/cell_bags.py --methods '' --out DIR    # phantoms, and a store of their cells
    python benchmarks/cell_bag_heads.py DIR

The body is small_resnet from weights that have learned phantoms of other seeds; its features of each cell are taken
once. A head of two layers learns from 8 cells a field, drawn anew, by each pooling, or from each cell with its field's
label, on the same steps; scored are the cells of fields that nothing was trained on, against what they show: macro
average precision, mean of the seeds, 95 % intervals by a bootstrap over fields.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from protein_atlas.cells.bags import pick_cells
from protein_atlas.cells.pooling import POOLINGS, SHARPNESS
from protein_atlas.data.channel_statistics import channel_statistics
from protein_atlas.data.labels import read_labels
from protein_atlas.data.splits import balanced_split
from protein_atlas.data.store import ImageStore
from protein_atlas.evaluate.intervals import difference_interval, score_interval
from protein_atlas.vision.bags import GatedAttention, bag_logits
from protein_atlas.vision.losses import MultiLabelFocalLoss
from protein_atlas.vision.models import create_model
from protein_atlas.vision.network import ScoringNetwork

BASELINE, TRUTH, CELLS, BS = "field's label", "truth", 8, 8


def features(store: ImageStore) -> torch.Tensor:
    """What the body sees of each cell, float32 (N, F)."""
    network = ScoringNetwork(
        create_model("small_resnet", 28, pretrained="phantoms"), 255, *channel_statistics(store.read(store.ids[:500]))
    ).eval()
    with torch.inference_mode():
        return torch.cat([network.features(torch.from_numpy(store.read(store.ids[first : first + 256])))
                          for first in range(0, len(store.ids), 256)])  # fmt: skip


def learn_head(
    method: str, seen: torch.Tensor, rows: list[np.ndarray], targets: torch.Tensor, truth: torch.Tensor, epochs: int,
    seed: int,
) -> nn.Module:  # fmt: skip
    """A head of cells. rows: of each training field those of its cells; targets: (fields, K); truth: (N, K)."""
    name, _, sharpness = method.partition(" ")
    torch.manual_seed(seed)
    rng, labels, loss = np.random.default_rng(seed), targets.shape[1], MultiLabelFocalLoss(0.0)
    head = nn.Sequential(nn.Dropout(0.1), nn.Linear(seen.shape[1], 256), nn.ReLU(), nn.BatchNorm1d(256),
                         nn.Dropout(0.2), nn.Linear(256, labels))  # fmt: skip
    head[-1].bias.data = torch.logit(targets.mean(0).clamp(0.01, 0.99))
    attention = GatedAttention(seen.shape[1], labels) if name == "attention" else None
    parameters = [*head.parameters(), *(attention.parameters() if attention else ())]
    steps = epochs * (len(rows) // BS)
    optimiser = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for _ in range(epochs):
        order = rng.permutation(len(rows))
        for first in range(0, len(rows) // BS * BS, BS):
            fields = order[first : first + BS]
            cells = np.concatenate([rows[field][pick_cells(len(rows[field]), CELLS, rng)] for field in fields])
            logits = head(seen[cells])
            if method == TRUTH:
                found = loss(logits, truth[cells])
            elif method == BASELINE:
                found = loss(logits, targets[fields].repeat_interleave(CELLS, 0))
            else:
                shares = attention(seen[cells]).view(BS, CELLS, labels) if attention else None
                pooled = bag_logits(logits.view(BS, CELLS, labels), name, float(sharpness or SHARPNESS), shares)
                found = loss(pooled, targets[fields])
            optimiser.zero_grad()
            found.backward()
            optimiser.step()
            schedule.step()
    return head.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what cell_bags.py --out has written")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--methods", default=",".join([BASELINE, *POOLINGS, TRUTH]), help="log-sum-exp 8 says r")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    fields = read_labels(options.folder / "phantoms" / "train.csv")
    shown = read_labels(options.folder / "phantoms" / "cells.csv", fields.vocab, allow_none=True)
    store = ImageStore(options.folder / "store")
    assert store.ids == shown.ids.tolist()
    row = {field: number for number, field in enumerate(fields.ids)}
    of = np.array([row[field] for field in shown.columns["Field"]])
    train, valid = balanced_split(fields.targets, 1 / 3, vocab=fields.vocab)
    seen, own, scored = features(store), np.isin(of, train), np.flatnonzero(np.isin(of, valid))
    seen = (seen - seen[own].mean(0)) / (seen[own].std(0) + 1e-6)
    rows = {field: np.flatnonzero(of == field) for field in train.tolist()}
    rows = {field: cells for field, cells in rows.items() if len(cells)}
    targets = torch.from_numpy(fields.targets[list(rows)].astype(np.float32))
    truth, base = torch.from_numpy(shown.targets.astype(np.float32)), None
    print("| a head learned by | cells, macro AP | against the baseline |\n| --- | --- | --- |")
    for method in options.methods.split(","):
        heads = [learn_head(method, seen, list(rows.values()), targets, truth, options.epochs, seed)
                 for seed in range(options.seeds)]  # fmt: skip
        with torch.no_grad():
            found = np.stack([head(seen[scored]).sigmoid().double().numpy() for head in heads])
        base = found if method == BASELINE else base
        compared = "" if base is None or method == BASELINE else difference_interval(
            shown.targets[scored], found, base, "macro AP", of[scored])  # fmt: skip
        print(f"| {method} | {score_interval(shown.targets[scored], found, 'macro AP', of[scored])} | {compared} |",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
