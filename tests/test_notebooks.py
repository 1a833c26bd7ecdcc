"""Every notebook runs from top to bottom, one test each: the same run as `nbdev_test`, with counts."""
import os
import signal
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from nbdev.config import get_config
from nbdev.test import test_nb as run_notebook

CONFIG = get_config(REPOSITORY)
NOTEBOOKS = sorted(
    path.relative_to(CONFIG.nbs_path) for path in Path(CONFIG.nbs_path).rglob("*.ipynb")
    if not any(part.startswith((".", "_")) for part in path.relative_to(CONFIG.nbs_path).parts)
)  # fmt: skip


def test_there_are_notebooks():
    """A wrong folder would leave nothing to run, and everything green."""
    assert NOTEBOOKS, f"no notebooks below {CONFIG.nbs_path}"


@pytest.fixture
def clean_process():
    """Put back what a notebook's run changes in this process."""
    path, folder, interrupt = sys.path.copy(), os.getcwd(), signal.getsignal(signal.SIGINT)
    yield
    sys.path[:] = path
    os.chdir(folder)
    signal.signal(signal.SIGINT, interrupt)


# A warning of a class that a notebook defines is of no module that another process of pytest's could import.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=str)
def test_notebook(notebook: Path, clean_process):
    passed, _ = run_notebook(
        CONFIG.nbs_path / notebook, skip_flags=CONFIG.tst_flags.split(), basepath=REPOSITORY, showerr=True
    )
    assert passed, f"nbs/{notebook} failed: its error is below, under 'Captured stderr call'"
