import os
from pathlib import Path

import pytest
import torch

# Tiny tensors gain nothing from threads, and parallel test processes lose much by them.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real data sets; tests that need them skip where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TENCENTPRETRAIN_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"the real data sets are not at {folder} (set TENCENTPRETRAIN_DATA)")
    return folder


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
