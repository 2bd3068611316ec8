"""Many processes as a mesh of three axes: copies of the data, shards of the data, tensors.

`torchrun` starts the processes. Those along "dp_replicate" hold equal parameters and other samples;
along "dp_shard" each holds a part of every parameter (FSDP2; Zhao et al., 2023; ZeRO, Rajbhandari
et al., 2020); along "tp" the matrices are cut (Shoeybi et al., 2019, Megatron-LM).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, ClassVar, Final, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout

from tencentpretrain.config import ComponentConfig, ConfigError, PositiveFloat, PositiveInt
from tencentpretrain.distributed.blocks import BlockOptions
from tencentpretrain.distributed.board import join, leave
from tencentpretrain.distributed.clip import clip_gradients
from tencentpretrain.distributed.layout import cut_axes, is_shared, put
from tencentpretrain.distributed.parallel import PARALLELS, Parallel
from tencentpretrain.distributed.processes import Circle, Place

if TYPE_CHECKING:
    from tencentpretrain.model import Model

AXES: Final = ("dp_replicate", "dp_shard", "tp")
KEYS: Final = {"dp_replicate": "replicate", "dp_shard": "shard", "tp": "tensor"}


class MeshConfig(ComponentConfig):
    """Keys of every strategy of many processes."""

    axes: ClassVar[tuple[str, ...]]
    """Axes that may be longer than 1; the first takes what the others leave."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where processes compute: auto is the GPU of each one's local rank, where there are any."""
    timeout: PositiveFloat = 600.0
    """Seconds after which a process that does not answer is given up, and the run with it."""
    reshard: bool = True
    """Whether a block gives up the parameters of others after its forward pass and gathers them
    again in the backward pass (ZeRO-3): less memory, half as much communication again."""
    offload: bool = False
    """Whether parameters and the optimiser's state stay in the memory of the host."""
    gather: Literal["auto", "fp32", "bf16"] = "auto"
    """Type in which matrices of blocks are gathered: auto is that in which they are multiplied.
    Norms, tables and heads are gathered, and gradients added, in fp32."""


class CutConfig(MeshConfig):
    """Keys of strategies that cut matrices."""

    sequence: bool = False
    """Whether each process has a slice of the positions between the layers that are cut (sequence
    parallel): less memory for activations, a quarter more communication among them."""


def sizes_of(config: MeshConfig, place: Place) -> tuple[int, ...]:
    """Length of each axis.

    Raises:
        ConfigError: if their product is not the number of processes.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", place.world))
    free, *others = config.axes
    given = {axis: getattr(config, KEYS[axis]) for axis in config.axes}
    for axis in others:
        given[axis] = given[axis] or here
    rest = math.prod(given[axis] for axis in others)
    given[free] = given[free] or max(1, place.world // rest)
    if math.prod(given.values()) != place.world:
        product = " x ".join(f"{KEYS[axis]}={size}" for axis, size in given.items())
        keys = " and ".join(f"parallel.{KEYS[axis]}" for axis in config.axes)
        raise ConfigError.at(
            "parallel",
            f"{product} = {math.prod(given.values())} processes, but there are {place.world}; "
            f"change {keys}, or start so many with torchrun",
        )
    return tuple(given.get(axis, 1) for axis in AXES)


def device_of(config: MeshConfig, place: Place) -> torch.device:
    """Where the process at `place` computes: those of a machine all on GPUs, or all on the CPU.

    Raises:
        ConfigError: if there are GPUs, but fewer than processes.
    """
    found = torch.cuda.device_count()
    if config.device == "cpu" or (config.device == "auto" and not found):
        return torch.device("cpu")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", place.local + 1))
    if found < here:
        raise ConfigError.at(
            "parallel.device",
            f"is {config.device}, but this machine has {found} GPU(s) for {here} processes; start "
            "as many as there are GPUs (torchrun --nproc-per-node), or give parallel.device=cpu",
        )
    return torch.device("cuda", place.local)


class Mesh(Parallel):
    """Processes on a mesh; subclasses only say which axes it has."""

    is_sharded = True
    config: MeshConfig

    def __init__(self, config: MeshConfig) -> None:
        self.config = config
        place = Place.find()
        sizes = sizes_of(config, place)
        self._device = device_of(config, place)
        uses_gpu = self._device.type == "cuda"
        if config.offload and not uses_gpu:
            message = "is for GPUs, but this process computes on the CPU; leave it out"
            raise ConfigError.at("parallel.offload", message)
        if uses_gpu:
            torch.cuda.set_device(self._device)
        self._board = join(place, self._device, config.timeout)
        self.mesh = init_device_mesh(self._device.type, sizes, mesh_dim_names=AXES)
        data = self.mesh["dp_replicate", "dp_shard"]
        flat = data._flatten("dp")
        self._group = flat.get_group()
        for group in (*self.mesh.get_all_groups(), self._group):
            # A mesh makes its groups with torch's own limit, which is half an hour.
            _set_pg_timeout(timedelta(seconds=config.timeout), group)
        self.rank, self.world = flat.get_local_rank(), flat.size()
        self.size = place.world
        self.gathers = self.mesh["dp_shard"].size() > 1
        self.is_main = place.rank == 0
        # Over gloo and apart from what trains; another thread may save meanwhile.
        self._host = self._host_group() if place.world > 1 else None
        self.circle = Circle(self._host)
        self.saving_circle = Circle(self._host_group() if place.world > 1 else None)
        self._asked: tuple[dist.Work, Tensor] | None = None
        # Whoever is refused later must not leave while others still make groups with it.
        self.begin("opening the run")

    def _host_group(self) -> dist.ProcessGroup:
        limit = timedelta(seconds=self.config.timeout)
        group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=limit)
        return group

    @property
    def device(self) -> torch.device:
        return self._device

    def home(self, tensor: Tensor) -> torch.device:
        # What is not shared is not moved back and forth either.
        is_away = self.config.offload and is_shared(tensor)
        return torch.device("cpu") if is_away else self._device

    def misfits(self, model: Model) -> list[str]:
        from tencentpretrain.distributed.tensor_parallel import tensor_misfits

        tensor = self.mesh["tp"].size()
        return tensor_misfits(model, tensor) if tensor > 1 else []

    def shape(self, model: Model, blocks: BlockOptions) -> None:
        # It imports much of torch, for which one process need not wait.
        from tencentpretrain.distributed.parallelize import parallelize

        if self.config.gather == "bf16" and blocks.dtype != torch.bfloat16:
            raise ConfigError.at(
                "parallel.gather",
                "is bf16, but this run multiplies in fp32 (trainer.precision); leave it out",
            )
        parallelize(model, self.mesh, self.config, blocks)

    def fill(self, module: nn.Module, function: Callable[[], None]) -> None:
        """Parameters of one module at a time are whole, for as long as all of them are filled."""
        own = {n: p for n, p in module._parameters.items() if p is not None}
        cut = {name: own[name] for name in own if is_shared(own[name])}
        for name, parameter in cut.items():
            whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=self._device)
            module._parameters[name] = nn.Parameter(whole, requires_grad=parameter.requires_grad)
        try:
            function()
            for name, parameter in cut.items():
                filled = module._parameters[name]
                assert filled is not None
                put(parameter, filled.detach())
        finally:
            module._parameters.update(cut)

    def sum(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.world == 1 or not tensors:
            return tensors
        dtype = torch.float64 if self._device.type == "cpu" else torch.float32
        dtype = torch.promote_types(dtype, next(iter(tensors.values())).dtype)
        if not any(tensor.is_floating_point() for tensor in tensors.values()):
            dtype = torch.int64  # counts are added exactly
        joined = torch.stack([tensor.to(dtype) for tensor in tensors.values()])
        dist.all_reduce(joined, group=self._group)
        return {
            name: total.to(tensor.dtype)
            for (name, tensor), total in zip(tensors.items(), joined.unbind(), strict=True)
        }

    def sync(self, model: nn.Module, is_last: bool) -> None:
        model.set_requires_gradient_sync(is_last)  # type: ignore[operator]  # of FSDPModule

    def clip(
        self, parameters: Iterable[nn.Parameter], limit: float, is_finite: Tensor
    ) -> tuple[Tensor, Tensor]:
        trained = [p for p in parameters if p.grad is not None]
        self._average([p.grad for p in trained if p.grad is not None and not is_shared(p)])
        problems = (~is_finite).float()
        norm = clip_gradients(trained, limit, self.size, problems).to(self._device)
        return norm, torch.isfinite(norm) & (problems == 0)

    def _average(self, gradients: list[Tensor]) -> None:
        """Average `gradients` of what is whole over the ranks of data, as FSDP does all others."""
        if self.world == 1 or not gradients:
            return
        joined = torch.cat([gradient.flatten() for gradient in gradients]) / self.world
        dist.all_reduce(joined, group=self._group)
        parts = joined.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_([gradient.view(-1) for gradient in gradients], list(parts))

    def is_keeper(self, tensor: Tensor) -> bool:
        cutting: set[str] = set()
        if is_shared(tensor):
            names = tensor.device_mesh.mesh_dim_names or ()
            cutting = {names[axis] for axis, _ in cut_axes(tensor)}
        return all(self.mesh.get_local_rank(axis) == 0 for axis in AXES if axis not in cutting)

    def stop(self, reason: str | None) -> str | None:
        """The wish of one step is heard at the end of the next: nobody waits for an answer."""
        if self._host is None:
            return reason
        heard = None
        if self._asked is not None:
            work, said = self._asked
            work.wait()
            heard = SIGNALS[int(said)]
        wish = torch.tensor(SIGNALS.index(reason) if reason in SIGNALS else 0)
        work = dist.all_reduce(wish, dist.ReduceOp.MAX, group=self._host, async_op=True)
        self._asked = work, wish
        return heard

    def begin(self, phase: str, is_training: bool = False) -> None:
        if self._board is not None:
            self._board.begin(phase, is_training)

    def close(self) -> None:
        if self._asked is not None:
            self._asked[0].wait()
            self._asked = None
        if self._board is not None:
            self._board.finish()
        leave()


SIGNALS: Final[tuple[str | None, ...]] = (None, "SIGINT", "SIGTERM")


@PARALLELS.register("ddp")
class ReplicatedData(Mesh):
    """Every process has the whole model and its own samples."""

    class Config(MeshConfig):
        axes = ("dp_replicate",)
        replicate: PositiveInt | None = None
        """Processes with other samples; null is all."""


@PARALLELS.register("fsdp")
class ShardedData(Mesh):
    """Every process has a part of each parameter and its own samples (FSDP2)."""

    class Config(MeshConfig):
        axes = ("dp_shard",)
        shard: PositiveInt | None = None
        """Processes among which parameters are cut; null is all."""


@PARALLELS.register("hsdp")
class HybridData(Mesh):
    """Groups of processes that cut the parameters among them; all groups hold the same."""

    class Config(MeshConfig):
        axes = ("dp_replicate", "dp_shard")
        replicate: PositiveInt | None = None
        """Groups with equal parameters; null is all processes divided by shard."""
        shard: PositiveInt | None = None
        """Processes of a group; null is those of a machine."""


@PARALLELS.register("tp")
class CutTensors(Mesh):
    """Processes that compute one batch together, each with a part of every matrix."""

    class Config(CutConfig):
        axes = ("tp",)
        tensor: PositiveInt | None = None
        """Processes among which matrices are cut; null is all."""


@PARALLELS.register("fsdp_tp")
class ShardedDataCutTensors(Mesh):
    """Groups of processes that cut matrices among them, and cut parameters among the groups."""

    class Config(CutConfig):
        axes = ("dp_shard", "tp")
        shard: PositiveInt | None = None
        """Groups with other samples; null is all processes divided by tensor."""
        tensor: PositiveInt | None = None
        """Processes of a group, among which matrices are cut; null is those of a machine."""
