import torch
from torch import nn

from tencentpretrain.config import decode
from tencentpretrain.distributed.parallel import PARALLELS


def test_one_process_changes_nothing() -> None:
    single = PARALLELS.build(
        decode(PARALLELS.config_class("none"), {"name": "none", "device": "cpu"})
    )
    model, units = nn.Linear(2, 2), {"mlm": torch.tensor(3.0)}
    assert single.prepare(model) is model
    assert single.sum(units) is units
    assert (single.rank, single.world, single.device.type) == (0, 1, "cpu")


def test_the_device_is_the_gpu_where_there_is_one() -> None:
    chosen = PARALLELS.build(PARALLELS.default("none")).device.type
    assert chosen == ("cuda" if torch.cuda.is_available() else "cpu")
