import json
import pickle
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tencentpretrain.data.checksum import Checksum, file_checksum
from tencentpretrain.errors import CheckpointError
from tencentpretrain.train import durable
from tencentpretrain.train.tensor_file import (
    LazyTensors,
    _raw,
    open_tensors,
    read_tensors,
    write_tensors,
)

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint64,
    torch.uint32,
    torch.uint16,
    torch.uint8,
    torch.bool,
]


def same(left: Tensor, right: Tensor) -> bool:
    """Equal to the last bit, NaN included."""
    return left.dtype == right.dtype and left.shape == right.shape and _raw(left) == _raw(right)


def mixed() -> dict[str, Tensor]:
    """Names and sizes chosen so that sorting by name alone would misalign wide types."""
    return {
        "a.bool": torch.tensor([True, False, True]),
        "b.scalar": torch.tensor(3.5, dtype=torch.float64),
        "c.empty": torch.empty(0, 4),
        "d.bf16": torch.randn(3, 5).bfloat16(),
        "e.transposed": torch.randn(4, 6).t(),
        "f.strided": torch.arange(20)[::3],
        "g.parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "h.ü": torch.tensor([float("nan"), float("inf"), -0.0]),
        "i.byte": torch.tensor(7, dtype=torch.uint8),
        "j.expanded": torch.ones(1).expand(3, 2),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_is_read_back_by_the_library(tmp_path: Path, dtype: torch.dtype) -> None:
    raw = torch.randint(0, 256, (3, 16), dtype=torch.uint8)
    tensor = (raw > 99) if dtype is torch.bool else raw.view(dtype)
    write_tensors(tmp_path / "x.safetensors", {"odd": torch.tensor([True]), "x": tensor})
    assert same(load_file(tmp_path / "x.safetensors")["x"], tensor)
    assert same(read_tensors(tmp_path / "x.safetensors")["x"], tensor)


def test_all_kinds_of_tensors_together(tmp_path: Path) -> None:
    tensors = mixed()
    path = tmp_path / "x.safetensors"
    record = write_tensors(path, tensors, {"b": "2", "a": "1"})
    for found in (load_file(path), read_tensors(path)):
        assert sorted(found) == sorted(tensors)
        assert all(same(found[name], tensors[name]) for name in tensors)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"a": "1", "b": "2"}
    assert record.bytes == path.stat().st_size
    assert record.checksum == file_checksum(path)


def test_no_tensors_at_all(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", {})
    assert read_tensors(tmp_path / "x.safetensors") == {}


def test_bytes_do_not_depend_on_the_order(tmp_path: Path) -> None:
    tensors = mixed()
    write_tensors(tmp_path / "a", tensors, {"x": "1", "y": "2"})
    write_tensors(tmp_path / "b", dict(reversed(tensors.items())), {"y": "2", "x": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tensors_that_are_made_one_by_one_give_the_same_bytes(tmp_path: Path) -> None:
    tensors = mixed()
    made: list[str] = []

    def make(name: str) -> Tensor:
        made.append(name)
        return tensors[name]

    described = {name: tensor.to("meta") for name, tensor in tensors.items()}
    record = write_tensors(tmp_path / "a", LazyTensors(described, make))
    assert sorted(made) == sorted(tensors)
    assert record == write_tensors(tmp_path / "b", tensors)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tensors_of_an_open_file_are_described_before_they_are_read(tmp_path: Path) -> None:
    tensors = mixed()
    write_tensors(tmp_path / "x.safetensors", tensors)
    found = open_tensors(tmp_path / "x.safetensors")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found.described[name].is_meta
        assert found.described[name].shape == tensor.shape
        assert same(found[name], tensor)
    fewer = found.without(["a.bool"])
    assert len(fewer) == len(found) - 1
    with pytest.raises(KeyError, match=r"a\.bool"):
        fewer["a.bool"]
    with pytest.raises(CheckpointError, match="no readable safetensors file"):
        open_tensors(tmp_path / "absent.safetensors")


def test_values_start_at_multiples_of_their_width(tmp_path: Path) -> None:
    tensors = mixed()
    write_tensors(tmp_path / "x", tensors)
    data = (tmp_path / "x").read_bytes()
    size = int.from_bytes(data[:8], "little")
    assert size % 8 == 0
    for name, entry in json.loads(data[8 : 8 + size]).items():
        assert entry["data_offsets"][0] % tensors[name].element_size() == 0


def test_contiguous_cpu_tensors_are_not_copied() -> None:
    tensor = torch.zeros(8, 4)
    view = _raw(tensor)
    tensor.fill_(1.0)
    assert view.tobytes() == _raw(torch.ones(8, 4))


def test_large_and_small_tensors_are_checksummed_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second thread, which takes the large ones, may be much slower than the writing."""

    class SlowChecksum(Checksum):
        def update(self, data: bytes) -> None:
            time.sleep(0.02 if len(data) > 1 << 20 else 0)
            super().update(data)

    monkeypatch.setattr(durable, "Checksum", SlowChecksum)
    tensors = {f"{i}": torch.randn(size) for i, size in enumerate((7, 600_000, 3, 400_000, 5))}
    record = write_tensors(tmp_path / "x", tensors)
    assert record.checksum == file_checksum(tmp_path / "x")
    assert all(same(value, tensors[name]) for name, value in read_tensors(tmp_path / "x").items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_from_and_to_another_device(tmp_path: Path) -> None:
    tensor = torch.randn(5, 3, device="cuda").t()
    write_tensors(tmp_path / "x.safetensors", {"x": tensor})
    found = read_tensors(tmp_path / "x.safetensors", "cuda")["x"]
    assert found.is_cuda
    assert torch.equal(found, tensor)


def test_some_names_only(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", {"first": torch.ones(2), "second": torch.zeros(2)})
    assert list(read_tensors(tmp_path / "x.safetensors", names=["second"])) == ["second"]
    with pytest.raises(CheckpointError, match="no tensor `secnd`; did you mean `second`"):
        read_tensors(tmp_path / "x.safetensors", names=["secnd"])


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        write_tensors(tmp_path / "x", {"x": torch.ones(2)})
    assert (tmp_path / "x").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(2, dtype=torch.complex128), "`x` is of type torch.complex128"),
        (torch.ones(2, 2).to_sparse(), "must be dense"),
        (torch.ones(2, device="meta"), "but is meta"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(
    tmp_path: Path, tensor: Tensor, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        write_tensors(tmp_path / "x", {"x": tensor})
    assert not (tmp_path / "x").exists()


def hostile_file(kind: str) -> bytes:
    def file(header: dict[str, object], data: bytes = b"\0" * 8) -> bytes:
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data

    def entry(start: int, end: int, shape: list[int]) -> dict[str, object]:
        return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}

    return {
        "huge header": (1 << 62).to_bytes(8, "little") + b"{}",
        "header beyond the end": (1000).to_bytes(8, "little") + b"{}",
        "overlap": file({"a": entry(0, 8, [2]), "b": entry(4, 8, [1])}),
        "hole": file({"a": entry(0, 4, [1])}),
        "beyond the end": file({"a": entry(0, 4000, [1000])}),
        "shape of another size": file({"a": entry(0, 8, [3])}),
        "overflow": file({"a": entry(0, 8, [1 << 62, 1 << 62])}),
        "unknown type": file({"a": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}}),
        "no json": (8).to_bytes(8, "little") + b"\xff" * 16,
        "pickle": pickle.dumps({"a": list(range(100))}),
        "empty": b"",
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "huge header",
        "header beyond the end",
        "overlap",
        "hole",
        "beyond the end",
        "shape of another size",
        "overflow",
        "unknown type",
        "no json",
        "pickle",
        "empty",
    ],
)
def test_malformed_files_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(hostile_file(kind))
    with pytest.raises(CheckpointError, match=r"model\.safetensors` is no readable safetensors"):
        read_tensors(path)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.safetensors"):
        read_tensors(tmp_path / "absent.safetensors")
