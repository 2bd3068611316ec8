import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tencentpretrain.annotators.image_codec import ImageCodec
from tencentpretrain.annotators.vqgan import read_vqgan, to_vqgan
from tencentpretrain.errors import CheckpointError, DataError
from tencentpretrain.train.load import state_tensors
from tests.helpers.vqgan import CODES, Reference, random_weights

CPU = torch.device("cpu")
TRAINING = {"loss.discriminator.main.0.weight": torch.ones(2, 2)}


def written(folder: Path, name: str, weights: dict[str, torch.Tensor]) -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save({"state_dict": weights, "epoch": 3, "global_step": 10}, path)
    return path


@pytest.mark.parametrize("name", ["vqgan.safetensors", "last.ckpt", "vqgan.pt"])
def test_published_weights_give_the_codes_and_images_of_their_model(
    tmp_path: Path, name: str
) -> None:
    weights = random_weights()
    reference = Reference(weights)
    codec = ImageCodec.open(written(tmp_path, name, weights | TRAINING), CPU)
    assert (codec.count, codec.factor, codec.size) == (CODES, 2, None)
    colours = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    codes = codec.encode(colours)
    assert codes.shape == (3, 64)
    assert len(codes.unique()) > 5
    assert torch.equal(codes, reference.codes(2 * colours - 1))
    images = ((reference.decode(codes, 8) + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(codec.decode(codes), images, rtol=1e-5, atol=1e-5)


def test_what_is_read_is_written_the_same(tmp_path: Path) -> None:
    weights = random_weights()
    _, model = read_vqgan(written(tmp_path, "a.safetensors", weights))
    back = to_vqgan(state_tensors(model))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in weights.items())


def test_images_that_are_no_whole_number_of_cells_are_refused(tmp_path: Path) -> None:
    codec = ImageCodec.open(written(tmp_path, "a.safetensors", random_weights()), CPU)
    with pytest.raises(DataError, match="must have sides that 2 divides, but have 15 x 16"):
        codec.encode(torch.rand(1, 3, 15, 16))
    with pytest.raises(DataError, match="must be those of a square image, but are 63"):
        codec.decode(torch.zeros(1, 63, dtype=torch.int64))


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("quantize.embedding.weight", r"holds no autoencoder .* it has no `quantize.embedding"),
        ("decoder.conv_out.bias", r"1 missing: `target.reconstruct.net.conv_out.bias`"),
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, removed: str, message: str) -> None:
    weights = random_weights()
    del weights[removed]
    with pytest.raises(CheckpointError, match=message):
        read_vqgan(written(tmp_path, "a.safetensors", weights))


def test_left_over_weights_are_refused(tmp_path: Path) -> None:
    weights = random_weights() | {"temporal.weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"1 unexpected: `temporal.weight`"):
        read_vqgan(written(tmp_path, "a.safetensors", weights))


class Intruder:
    def __reduce__(self) -> Any:
        return print, ("code of the file was run",)


def test_code_in_a_file_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evil.ckpt"
    path.write_bytes(pickle.dumps({"state_dict": random_weights(), "callbacks": Intruder()}))
    with pytest.raises(CheckpointError, match="may hold code and is not opened"):
        read_vqgan(path)
    assert "code of the file" not in capsys.readouterr().out
