import pytest
import torch
from torch import nn

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.distributed.blocks import BlockOptions
from tencentpretrain.distributed.mesh import ShardedData, device_of, sizes_of
from tencentpretrain.distributed.parallel import PARALLELS, Parallel
from tencentpretrain.distributed.processes import Place
from tencentpretrain.model import build_model, fill_model
from tests.helpers.models import TINY, VOCABULARY, model_config, tiny_model


def single() -> Parallel:
    config = decode(PARALLELS.config_class("none"), {"name": "none", "device": "cpu"})
    return PARALLELS.build(config)


def test_one_process_changes_nothing() -> None:
    parallel, units = single(), {"mlm": torch.tensor(3.0)}
    model = tiny_model("bert/tiny")
    before = {name: p.clone() for name, p in model.named_parameters()}
    parallel.shape(model, BlockOptions())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert parallel.sum(units) is units
    assert (parallel.rank, parallel.world, parallel.device.type) == (0, 1, "cpu")
    assert parallel.circle.gather({"a": 1}) == [{"a": 1}]


def test_d93_the_device_is_the_gpu_where_there_is_one() -> None:
    chosen = PARALLELS.build(PARALLELS.default("none")).device.type
    assert chosen == ("cuda" if torch.cuda.is_available() else "cpu")


def test_what_is_offloaded_lies_on_the_host_and_the_rest_on_the_device() -> None:
    parallel = object.__new__(ShardedData)
    parallel.config = ShardedData.Config(offload=True)
    parallel._device = torch.device("meta")
    config = model_config("bert/tiny", TINY)
    model = build_model(config, VOCABULARY, "meta")
    shared = {name for name, p in model.named_parameters() if p.dim() == 2}
    for name in shared:
        model.get_parameter(name).placements = ()  # type: ignore[attr-defined]
    fill_model(model, config, "meta", 0, home=parallel.home)
    on_host = {name for name, p in model.named_parameters() if p.device.type == "cpu"}
    assert on_host == shared


def test_gradients_are_clipped_as_torch_does() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 3)
    layer(torch.randn(4, 5)).square().sum().backward()
    gradients = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
    norm, is_finite = single().clip(layer.parameters(), 0.5, torch.tensor(True))
    clipped = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
    for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
        parameter.grad = gradient
    wanted = nn.utils.clip_grad_norm_(layer.parameters(), 0.5)
    torch.testing.assert_close(norm, wanted)
    assert bool(is_finite)
    for mine, parameter in zip(clipped, layer.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad)


def test_a_gradient_that_is_not_finite_is_told() -> None:
    layer = nn.Linear(2, 2)
    layer(torch.full((1, 2), float("inf"))).sum().backward()
    _, is_finite = single().clip(layer.parameters(), 1.0, torch.tensor(True))
    assert not bool(is_finite)


ENVIRONMENT = {
    "RANK": "3",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "3",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "1234",
}


def test_the_place_comes_from_the_environment() -> None:
    assert Place.find({}) == Place()
    assert Place.find(ENVIRONMENT) == Place(3, 8, 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"WORLD_SIZE": None}, "but WORLD_SIZE are not"),
        ({"RANK": None}, "but RANK are not"),
        ({"RANK": "8"}, "RANK=8 must be below WORLD_SIZE=8"),
        ({"LOCAL_RANK": "a"}, "LOCAL_RANK must be a number, but is `a`"),
    ],
)
def test_half_an_environment_is_refused(change: dict[str, str | None], said: str) -> None:
    environment = {k: v for k, v in (ENVIRONMENT | change).items() if v is not None}
    with pytest.raises(ConfigError, match=said):
        Place.find(environment)


@pytest.mark.parametrize(
    ("name", "keys", "world", "sizes"),
    [
        ("ddp", {}, 8, (8, 1, 1)),
        ("fsdp", {}, 8, (1, 8, 1)),
        ("hsdp", {"shard": 4}, 8, (2, 4, 1)),
        ("tp", {}, 4, (1, 1, 4)),
        ("fsdp_tp", {"tensor": 2}, 8, (1, 4, 2)),
        ("fsdp_tp", {"tensor": 2, "shard": 4}, 8, (1, 4, 2)),
    ],
)
def test_an_axis_takes_what_the_others_leave(
    name: str, keys: dict[str, int], world: int, sizes: tuple[int, ...]
) -> None:
    config = decode(PARALLELS.config_class(name), {"name": name, **keys})
    assert sizes_of(config, Place(0, world)) == sizes  # type: ignore[arg-type]


def test_a_wrong_product_is_shown() -> None:
    config = decode(PARALLELS.config_class("hsdp"), {"name": "hsdp", "replicate": 2, "shard": 3})
    with pytest.raises(ConfigError, match=r"replicate=2 x shard=3 = 6 processes, but there are 8"):
        sizes_of(config, Place(0, 8))  # type: ignore[arg-type]
    config = decode(PARALLELS.config_class("fsdp_tp"), {"name": "fsdp_tp", "tensor": 3})
    with pytest.raises(ConfigError, match=r"shard=2 x tensor=3 = 6 processes, but there are 8"):
        sizes_of(config, Place(0, 8))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "gpus", "found"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:1"),
        ("cpu", 2, "cpu"),
        ("auto", 1, ""),
        ("cuda", 0, ""),
    ],
)
def test_processes_of_a_machine_are_all_on_gpus_or_all_on_the_cpu(
    device: str, gpus: int, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    config = decode(PARALLELS.config_class("ddp"), {"name": "ddp", "device": device})
    places = [Place(0, 2, 0), Place(1, 2, 1)]
    if found:
        assert device_of(config, places[1]) == torch.device(found)  # type: ignore[arg-type]
        return
    for place in places:
        with pytest.raises(ConfigError, match=rf"{gpus} GPU\(s\) for 2 processes"):
            device_of(config, place)  # type: ignore[arg-type]


def test_torchrun_without_a_strategy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="torchrun has started 8 processes"):
        single()
