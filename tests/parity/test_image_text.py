"""CLIP and ViLT: `transformers` and ours say the same, and models come back as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tencentpretrain.convert.arrival import Request, arrive
from tencentpretrain.convert.departure import depart
from tencentpretrain.convert.families import family_of
from tencentpretrain.convert.huggingface import numbers_of
from tencentpretrain.convert.incoming import respell
from tencentpretrain.convert.report import Report
from tencentpretrain.convert.table import convert
from tencentpretrain.convert.weights import open_weights, read_json
from tencentpretrain.data.media.transforms import ImageTransform
from tencentpretrain.errors import CheckpointError
from tencentpretrain.model import Model
from tencentpretrain.train.tensor_file import LazyTensors
from tencentpretrain.types import Batch, Labels, Layout, Stream
from tests.helpers.models import layout_of, randomise, total_loss
from tests.helpers.pictures import prepared
from tests.helpers.saved import load_saved

transformers = pytest.importorskip("transformers")

LENGTHS, END, IMAGE = (7, 4, 6), 41, 12
STACK = {"num_hidden_layers": 3, "num_attention_heads": 2, "attn_implementation": "eager"}
CLIP = {
    "text_config": STACK
    | {"hidden_size": 16, "intermediate_size": 24, "vocab_size": 42, "eos_token_id": END}
    | {"max_position_embeddings": 9, "projection_dim": 10},
    "vision_config": STACK
    | {"hidden_size": 20, "intermediate_size": 28, "image_size": IMAGE, "patch_size": 4}
    | {"projection_dim": 10},
    "projection_dim": 10,
    "attn_implementation": "eager",
}
OLD = CLIP | {"text_config": CLIP["text_config"] | {"eos_token_id": 2}}
VILT = STACK | {
    "hidden_size": 16,
    "intermediate_size": 24,
    "vocab_size": 42,
    "image_size": IMAGE,
    "patch_size": 4,
}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "clip": ("CLIPModel", "CLIPConfig", CLIP),
    "clip old": ("CLIPModel", "CLIPConfig", OLD),
    "vilt mlm": ("ViltForMaskedLM", "ViltConfig", VILT),
    "vilt match": ("ViltForImageAndTextRetrieval", "ViltConfig", VILT),
    "vilt": ("ViltModel", "ViltConfig", VILT),
}


class Trip(NamedTuple):
    """A reference, ours with its weights, and folders of it, of ours, and of what came back."""

    case: str
    theirs: Any
    ours: Model
    folder: Path


@pytest.fixture(scope="module", params=CASES)
def trip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trip:
    folder = tmp_path_factory.mktemp("image_text")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    cls, config, keys = CASES[request.param]
    torch.manual_seed(0)
    theirs = getattr(transformers, cls)(getattr(transformers, config)(**keys)).eval()
    randomise(theirs)
    theirs.save_pretrained(folder / "theirs")
    arrive(folder / "theirs", Request()).write(folder / "ours")
    depart(folder / "ours").write(folder / "back")
    return Trip(request.param, theirs, load_saved(folder / "ours"), folder)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def inputs() -> tuple[Tensor, Layout, Tensor]:
    """Ids that end with the end token, their layout, and pixels."""
    generator = torch.Generator().manual_seed(1)
    layout = layout_of(LENGTHS, 8)
    ids = torch.randint(3, END, layout.valid.shape, generator=generator)
    ids[torch.arange(len(LENGTHS)), torch.tensor(LENGTHS) - 1] = END
    pixels = torch.randn(len(LENGTHS), 3, IMAGE, IMAGE, generator=generator)
    return ids.masked_fill(~layout.valid, 0), layout, pixels


def two_streams() -> Batch:
    ids, layout, pixels = inputs()
    one = Layout(torch.ones(len(ids), 1, dtype=torch.bool))
    return Batch({"text": Stream({"ids": ids}, layout), "image": Stream({"pixels": pixels}, one)})


def one_stream() -> Batch:
    ids, layout, pixels = inputs()
    segments = (torch.arange(ids.shape[1]) > 2).long().expand_as(ids)
    stream = Stream({"ids": ids, "pixels": pixels, "segments": segments}, layout)
    index = layout.valid.flatten().nonzero().squeeze(1)[::3]
    return Batch({"src": stream}, {"mlm": Labels(index % 40, index, ids.shape[1])})


def arguments() -> dict[str, Tensor]:
    ids, layout, pixels = inputs()
    return {"input_ids": ids, "attention_mask": layout.valid.long(), "pixel_values": pixels}


def vilt_arguments() -> dict[str, Tensor]:
    return arguments() | {"token_type_ids": one_stream().streams["src"].inputs["segments"]}


def our_gradients(trip: Trip) -> LazyTensors:
    """The reference's gradients under our names."""
    family = family_of(trip.theirs.config.model_type)
    config = read_json(trip.folder / "theirs" / "config.json")
    gradients = {
        name: parameter.grad
        for name, parameter in trip.theirs.named_parameters()
        if parameter.grad is not None
    }
    spelled = respell(family.table, LazyTensors.of(gradients), Report())
    model = arrive(trip.folder / "theirs", Request()).incoming.model
    numbers = numbers_of(family, family.settings(config), model)
    return convert(family.rules(model.target), "ours", spelled, numbers).tensors


def compare_gradients(trip: Trip) -> None:
    expected = our_gradients(trip)
    for name, parameter in trip.ours.named_parameters():
        assert parameter.grad is not None, name
        close(parameter.grad, expected[name])
        assert parameter.grad.abs().max() > 1e-5 or name.endswith("key.bias"), name


def test_clip_is_that_of_transformers(trip: Trip) -> None:
    if "clip" not in trip.case:
        pytest.skip("another model")
    trip.ours.zero_grad()
    trip.theirs.zero_grad()
    batch, target = two_streams(), trip.ours.target["contrast"]
    out = trip.ours.encode(batch)
    reference = trip.theirs(**arguments(), return_loss=True)
    valid = batch.streams["text"].layout.valid
    close(out.encoded["text"].states[valid], reference.text_model_output.last_hidden_state[valid])
    text, image = target.vectors(out)
    close(text, reference.text_embeds)
    close(image, reference.image_embeds)
    close(target.logits(out, batch), reference.logits_per_text)
    loss = total_loss(trip.ours(batch))
    close(loss, reference.loss)
    loss.backward()
    reference.loss.backward()
    compare_gradients(trip)


def test_vilt_is_that_of_transformers(trip: Trip) -> None:
    if "vilt" not in trip.case:
        pytest.skip("another model")
    batch = one_stream()
    valid = batch.streams["src"].layout.valid
    words = valid.shape[1]
    trip.ours.zero_grad()
    trip.theirs.zero_grad()
    reference = trip.theirs.vilt(**vilt_arguments()) if hasattr(trip.theirs, "vilt") else (
        trip.theirs(**vilt_arguments()))  # fmt: skip
    out = trip.ours.encode(batch)
    close(out.hidden.states[:, :words][valid], reference.last_hidden_state[:, :words][valid])
    # The patches are there in an order that is drawn anew each time.
    ours, theirs = (x[:, words:].double().pow(3).sum(1)
                    for x in (out.hidden.states, reference.last_hidden_state))  # fmt: skip
    close(ours, theirs)
    if trip.case == "vilt match":
        scores = trip.theirs(**vilt_arguments()).logits
        close(trip.ours.target["match"].logits(out, batch), scores)
    elif trip.case == "vilt mlm":
        labels = batch.labels["mlm"]
        assert labels.index is not None
        grid = torch.full(valid.shape, -100).flatten()
        grid[labels.index] = labels.values
        # Theirs has no loss of its own for images beside words.
        logits = trip.theirs(**vilt_arguments()).logits
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), grid)
        close(trip.ours.target["mlm"].logits(out, batch), logits.flatten(0, 1)[labels.index])
        loss = total_loss(trip.ours(batch))
        close(loss, expected)
        loss.backward()
        expected.backward()
        compare_gradients(trip)


def test_every_tensor_and_key_comes_back(trip: Trip) -> None:
    before, after = (open_weights(trip.folder / name) for name in ("theirs", "back"))
    assert set(after) == set(before)
    for name in before:
        assert before[name].dtype == after[name].dtype
        assert torch.equal(before[name], after[name]), name
    old, new = (read_json(trip.folder / name / "config.json") for name in ("theirs", "back"))
    for section in ("text_config", "vision_config"):
        old |= {f"{section}.{key}": value for key, value in old.pop(section, {}).items()}
        new |= {f"{section}.{key}": value for key, value in new.pop(section, {}).items()}
    changed = {k: (v, new.get(k)) for k, v in old.items() if new.get(k) != v}
    assert not {k for k in changed if not k.endswith(("version", "dtype"))}, changed


def test_transformers_loads_what_came_back(trip: Trip) -> None:
    cls = getattr(transformers, CASES[trip.case][0])
    options: dict[str, Any] = {"attn_implementation": "eager", "output_loading_info": True}
    loaded, info = cls.from_pretrained(trip.folder / "back", **options)
    assert not any(info.values()), info
    given = vilt_arguments() if "vilt" in trip.case else arguments()
    expected, actual = trip.theirs(**given), loaded(**given)
    for key in set(expected) & {"logits", "logits_per_text", "pooler_output"}:
        close(actual[key], expected[key])


def pictures() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    sizes = [(40, 40), (31, 47), (64, 20)]
    return [random.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]


PROCESSORS: dict[str, tuple[str, dict[str, Any], int]] = {
    "clip": ("CLIPImageProcessorFast",
             {"size": {"shortest_edge": IMAGE}, "crop_size": {"height": IMAGE, "width": IMAGE}}, 3),
    # Theirs keeps the shape of other images, and fills them up.
    "vilt match": ("ViltImageProcessorFast", {"size": {"shortest_edge": IMAGE}, "size_divisor": 4},
                   1),
}  # fmt: skip


@pytest.mark.parametrize("case", PROCESSORS)
def test_pixels_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    name, keys, count = PROCESSORS[case]
    case = case.replace("match", "mlm")
    cls, config, model_keys = CASES[case]
    processor = getattr(transformers, name)(**keys)
    theirs = getattr(transformers, cls)(getattr(transformers, config)(**model_keys))
    theirs.save_pretrained(tmp_path / "theirs")
    processor.save_pretrained(tmp_path / "theirs")
    arrival = arrive(tmp_path / "theirs", Request())
    objective: Any = arrival.incoming.model.objective
    assert objective.name == case.split()[0]
    arrival.write(tmp_path / "ours")
    depart(tmp_path / "ours").write(tmp_path / "back")
    loaded = transformers.AutoImageProcessor.from_pretrained(tmp_path / "back")
    transform = ImageTransform(objective.transform)
    for picture in pictures()[:count]:
        image = Image.fromarray(picture)
        expected = processor(image, return_tensors="pt")["pixel_values"][0]
        close(prepared(transform, picture), expected)
        close(loaded(image, return_tensors="pt")["pixel_values"][0], expected)


def test_a_tower_alone_is_refused(tmp_path: Path) -> None:
    config = transformers.CLIPTextConfig(**CLIP["text_config"])
    transformers.CLIPTextModel(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="one tower alone"):
        arrive(tmp_path, Request(family="clip"))


def test_a_greater_temperature_to_begin_with_is_no_obstacle(tmp_path: Path) -> None:
    config = transformers.CLIPConfig(**CLIP, logit_scale_init_value=4.7)
    transformers.CLIPModel(config).save_pretrained(tmp_path / "theirs")
    arrive(tmp_path / "theirs", Request()).write(tmp_path / "ours")
    target: Any = load_saved(tmp_path / "ours").target["contrast"]
    assert target.log_scale.item() == pytest.approx(4.7)
