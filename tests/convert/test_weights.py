"""Files of weights: whole, in pieces, old and new, and everything that is refused."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tencentpretrain.convert.weights import in_type, open_weights
from tencentpretrain.errors import CheckpointError
from tencentpretrain.train.tensor_file import LazyTensors

TENSORS = {"a.weight": torch.randn(3, 4), "b": torch.arange(5), "c": torch.randn(2).bfloat16()}


def same(found: LazyTensors) -> bool:
    return set(found) == set(TENSORS) and all(
        torch.equal(found[name], tensor) and found.described[name].dtype == tensor.dtype
        for name, tensor in TENSORS.items()
    )


def write_pieces(folder: Path, stem: str, suffix: str) -> None:
    files = {f"{stem}-1{suffix}": ["a.weight"], f"{stem}-2{suffix}": ["b", "c"]}
    for file, names in files.items():
        part = {name: TENSORS[name] for name in names}
        if suffix == ".bin":
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file)
    places = {name: file for file, names in files.items() for name in names}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize(
    "kind",
    ["safetensors", "bin", "old bin", "wrapped", "pieces", "bin pieces", "original pieces"],
)
def test_all_kinds_of_files_are_read(tmp_path: Path, kind: str) -> None:
    if kind == "safetensors":
        save_file(TENSORS, tmp_path / "model.safetensors")
    elif "pieces" in kind:
        stem = {"bin pieces": "pytorch_model", "original pieces": "tencentpretrain_model"}
        suffix = ".safetensors" if kind == "pieces" else ".bin"
        write_pieces(tmp_path, stem.get(kind, "model"), suffix)
    else:
        content = {"state_dict": TENSORS} if kind == "wrapped" else TENSORS
        torch.save(
            content,
            tmp_path / "pytorch_model.bin",
            _use_new_zipfile_serialization=kind != "old bin",
        )
    assert same(open_weights(tmp_path))


def test_a_file_may_be_named_itself(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "anything.pt")
    assert same(open_weights(tmp_path / "anything.pt"))


class Harmful:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("harm"),))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: {"a": Harmful()}, "cannot be read as plain weights"),
        (lambda: torch.nn.Linear(2, 2), "cannot be read as plain weights"),
        (lambda: [torch.ones(1)], "must hold tensors by name, but holds of type list"),
        (lambda: {"a": torch.ones(1), "step": 3}, "`step` is of type int"),
        (lambda: {3: torch.ones(1)}, "has the key 3"),
    ],
)
@pytest.mark.parametrize("is_old", [True, False])
def test_nothing_but_tensors_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, message: str, is_old: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content(), "m.bin", _use_new_zipfile_serialization=not is_old)
    with pytest.raises(CheckpointError, match=message):
        open_weights(Path("m.bin"))
    assert not Path("harm").exists()


def test_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(CheckpointError, match=r"m\.bin` cannot be read as plain weights"):
        open_weights(tmp_path / "m.bin")
    assert not Path("harm").exists()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "../m.bin"}}, "which is not beside it"),
        ({"weight_map": {"a": "/m.bin"}}, "which is not beside it"),
        ({"weight_map": {"a": "absent.bin"}}, "there is no file"),
        ({"weight_map": {"b": "model-1.safetensors"}}, "lacks `b`"),
        ({"weight_map": ["a"]}, "must have a `weight_map`"),
        ([], "must hold a JSON object"),
    ],
)
def test_damaged_indices_are_named(tmp_path: Path, index: Any, message: str) -> None:
    write_pieces(tmp_path, "model", ".safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        open_weights(tmp_path)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "tf_model.h5").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"holds no weights.*it has tf_model\.h5"):
        open_weights(tmp_path)


@pytest.mark.parametrize("name", ["m.h5", "m.msgpack", "m.gguf"])
def test_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match="must be a file of weights"):
        open_weights(tmp_path / name)


def test_types_of_floats_can_be_changed() -> None:
    found = in_type(LazyTensors.of(TENSORS), "float16")
    assert found["a.weight"].dtype == found["c"].dtype == torch.float16
    assert found["b"].dtype == torch.int64
    assert found.described["a.weight"].dtype == torch.float16
    assert same(in_type(LazyTensors.of(TENSORS), "keep"))
