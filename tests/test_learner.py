"""A learner has all its methods however it was imported: each import in a process of its own."""
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE

from protein_atlas.data.phantoms import simulate_phantoms

OURS = (
    "fit_thresholds", "cross_fit", "interpret", "valid_scores", "scoring_network", "predictor", "save_bundle",
    "to_fp16", "to_bf16", "to_distributed", "detach_distributed", "distrib_ctx", "freeze", "fine_tune",
)
FASTAIS = ("fit_one_cycle", "lr_find", "fit_flat_cos", "fit_sgdr", "to_fp32", "show_results", "get_preds")


@pytest.fixture(scope="module")
def small_phantoms(tmp_path_factory) -> Path:
    return simulate_phantoms(tmp_path_factory.mktemp("learner") / "phantoms", n=60, size=32, min_count=1)


@pytest.mark.parametrize(
    "imports",
    [
        "import protein_atlas as pa\nrgby_learner = pa.rgby_learner",
        pytest.param("from protein_atlas.train.learner import rgby_learner", marks=pytest.mark.full),
        pytest.param("from protein_atlas import *", marks=pytest.mark.full),
    ],
)  # fmt: skip
def test_methods_in_a_fresh_process(small_phantoms, imports):
    code = f"""
{imports}
from protein_atlas.vision.data import protein_datablock
from protein_atlas.data.labels import read_labels
table = read_labels({str(small_phantoms / "train.csv")!r})
block = protein_datablock({str(small_phantoms / "train")!r}, table.vocab)
dls = block.dataloaders(table, bs=8, num_workers=0, device="cpu")
learn = rgby_learner(dls, "small_resnet", pretrained=False)
missing = [name for name in {OURS} if name not in vars(type(learn))]
missing += [name for name in {FASTAIS} if not callable(getattr(learn, name, None))]
assert not missing, missing
with learn.no_bar(), learn.no_logging():
    learn.fit_one_cycle(1, 1e-3)
learn.fit_thresholds()
print(learn.predictor().vocab == tuple(table.vocab))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0 and done.stdout.endswith("True\n"), done.stdout + done.stderr
