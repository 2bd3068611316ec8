"""TencentPretrain's CLIP, ViLT, DALL-E and Talk2Face compute here what their formulae compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tencentpretrain.cli import main
from tencentpretrain.convert.incoming import Incoming
from tencentpretrain.convert.original import import_original
from tencentpretrain.data.objectives.dalle import DalleObjective
from tencentpretrain.errors import CheckpointError
from tencentpretrain.model import Model, build_model
from tencentpretrain.train.load import load_weights
from tencentpretrain.train.tensor_file import LazyTensors
from tencentpretrain.types import Batch, Layout, Stream
from tests.helpers.models import layout_of
from tests.helpers.original import Original
from tests.helpers.original_files import FFN, HIDDEN, TRANSFORMER, VOCABULARY, random_state
from tests.helpers.saved import load_saved

LENGTHS, PATCHES, SIDE, SIZE = (9, 6), 1 + 3 * 2, 8, 6
IMAGE = {"image_height": 24, "image_width": 16, "patch_size": SIDE, "channels_num": 3}
TEXT_TOWER = {
    "emb_size": HIDDEN,
    "hidden_size": HIDDEN,
    "feedforward_size": FFN,
    "heads_num": 4,
    "layers_num": 2,
    "hidden_act": "gelu",
    "max_seq_length": 20,
    "embedding": ["word", "pos"],
    "encoder": "transformer",
    "mask": "fully_visible",
    "remove_embedding_layernorm": False,
    "layernorm_positioning": "post",
    "pooling": "first",
}
IMAGE_TOWER = TEXT_TOWER | {
    "emb_size": 24,
    "hidden_size": 24,
    "layers_num": 3,
    "hidden_act": "gelu_fast",
    "max_seq_length": PATCHES,
    "embedding": ["patch", "pos"],
    "remove_embedding_layernorm": True,
    "layernorm_positioning": "pre",
    "pooling": "mean",
}
CLIP = IMAGE | {
    "stream_0": TEXT_TOWER,
    "stream_1": IMAGE_TOWER,
    "embedding": ["dual"],
    "encoder": "dual",
    "target": ["clr"],
    "data_processor": "clip",
    "projection": True,
    "feature_size": SIZE,
    "tie_weights": False,
    "dropout": 0.0,
}
VILT = (
    TRANSFORMER
    | IMAGE
    | {
        "embedding": ["word_patch", "pos", "seg"],
        "target": ["mlm", "sp"],
        "data_processor": "vilt",
        "seq_length": LENGTHS[0],
    }
)
DALLE = TRANSFORMER | {
    "mask": "prefix",
    "target": ["lm"],
    "data_processor": "dalle",
    "image_height": 16,
    "image_width": 16,
    "max_seq_length": 24,
    "seq_length": 12,
    "tokenizer": "multimodal",
    "image_tokenizer": {"image_vocab_size": 10, "frame_size": 2},
}
TALK2FACE = DALLE | {
    "hidden_act": "gelu_fast",
    "data_processor": None,
    "remove_embedding_layernorm": True,
    "layernorm_positioning": "pre",
    "tokenizer": "text_image",
}


class Seeing(Original):
    """Their `patch_embedding.py` and `word_patch_embedding.py`, and the norm of a tower."""

    pixels: Tensor

    def patches(self, name: str) -> Tensor:
        weight = self.state[f"{name}.projection.weight"]
        rows = F.conv2d(self.pixels, weight, stride=SIDE).flatten(2).transpose(1, 2)
        return torch.cat([self.state[f"{name}.cls_emb"].expand(len(rows), -1, -1), rows], 1)

    def embed(self, side: str, key: str, ids: Tensor, seg: Tensor) -> Tensor:
        parts, state = self.config["embedding"], self.state
        if "word_patch" in parts:
            name = "embedding.word_patch"
            words = state[f"{name}.language_embedding.embedding.weight"][ids]
            rows = torch.cat([words, self.patches(f"{name}.vision_embedding")], 1)
            rows = rows + state["embedding.seg.embedding.weight"][seg]
        elif "patch" in parts:
            rows = self.patches("embedding.patch")
        else:
            rows = state["embedding.word.embedding.weight"][ids]
        rows = rows + state["embedding.pos.embedding.weight"][: rows.shape[1]]
        if not self.config.get("remove_embedding_layernorm"):
            rows = self.norm("embedding.layer_norm", rows, is_normal=True)
        if "outer.gamma" in state:
            rows = self.norm("outer", rows, is_normal=True)
        return rows


def tower_state(config: dict[str, Any]) -> dict[str, Tensor]:
    width = config["emb_size"]
    state = random_state(TRANSFORMER | config | {"target": []})
    if "patch" in config["embedding"]:
        state["embedding.patch.projection.weight"] = torch.randn(width, 3, SIDE, SIDE) * 0.1
        state["embedding.patch.cls_emb"] = torch.randn(1, 1, width)
    else:
        state["outer.gamma"], state["outer.beta"] = torch.randn(width), torch.randn(width)
    return state


def clip_file(towers: list[dict[str, Tensor]], scale: float = 2.0) -> dict[str, Tensor]:
    file = {"target.clr.logit_scale": torch.tensor(scale)}
    for number, (tower, width) in enumerate(zip(towers, (HIDDEN, 24), strict=True)):
        for name, tensor in tower.items():
            kind, _, rest = name.partition(".")
            before = {
                "outer": f"embedding.dual.stream_{number}_layer_norm",
                "embedding": f"embedding.dual.embedding_{number}",
                "encoder": f"encoder.encoder_{number}",
            }[kind]
            file[f"{before}.{rest}"] = tensor
        file[f"target.clr.encoder_{number}_projection"] = torch.randn(width, SIZE)
    return file


def brought(config: dict[str, Any], state: dict[str, Tensor]) -> tuple[Incoming, Model]:
    incoming = import_original(config, LazyTensors.of(state))
    model = build_model(incoming.model, VOCABULARY).eval()
    load_weights(model, incoming.tensors)
    assert not incoming.report.aside
    assert not incoming.report.unread
    return incoming, model


def captions() -> tuple[Tensor, Layout]:
    layout = layout_of(LENGTHS)
    ids = torch.randint(1, VOCABULARY, layout.valid.shape) * layout.valid
    return ids, layout


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_both_towers_of_clip_and_what_they_are_compared_by() -> None:
    torch.manual_seed(0)
    towers = [tower_state(TEXT_TOWER), tower_state(IMAGE_TOWER)]
    file = clip_file(towers)
    incoming, ours = brought(CLIP, file)
    (ids, layout), pixels = captions(), torch.randn(2, 3, 24, 16)
    batch = Batch(
        {
            "text": Stream({"ids": ids}, layout),
            "image": Stream({"pixels": pixels}, Layout(torch.ones(2, 1, dtype=torch.bool))),
        }
    )
    text, image = Seeing(TEXT_TOWER, towers[0]), Seeing(IMAGE_TOWER, towers[1])
    image.pixels = pixels
    wanted = [text.encode(ids, layout.valid.long()), image.encode(ids, torch.ones(2, PATCHES))]
    out = ours.encode(batch)
    close(out.encoded["text"].states[layout.valid], wanted[0][layout.valid])
    close(out.encoded["image"].states, wanted[1])
    pooled = [wanted[0][:, 0], wanted[1].mean(1)]
    vectors = [
        F.normalize(rows @ file[f"target.clr.encoder_{number}_projection"], dim=-1)
        for number, rows in enumerate(pooled)
    ]
    scores = torch.tensor(2.0).exp() * vectors[0] @ vectors[1].T
    close(ours.target["contrast"].logits(out, batch), scores)
    own = torch.arange(2)
    loss = (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2
    found = ours.target["contrast"](out, batch).losses["contrast"]
    close(found.total / found.count, loss)
    assert incoming.model.objective is None, "images that are not square have no objective"


def test_square_images_bring_the_objective_of_clip() -> None:
    square = {
        "image_height": 24,
        "image_width": 24,
        "stream_1": IMAGE_TOWER | {"max_seq_length": 10},
    }
    towers = [tower_state(TEXT_TOWER), tower_state(square["stream_1"])]  # type: ignore[arg-type]
    incoming, _ = brought(CLIP | square, clip_file(towers))
    objective: Any = incoming.model.objective
    assert (objective.name, objective.length, objective.transform.size) == ("clip", 20, 24)
    assert objective.transform.mean == (0.48145466, 0.4578275, 0.40821073)


def test_d47_greater_temperatures_than_here_are_told() -> None:
    towers = [tower_state(TEXT_TOWER), tower_state(IMAGE_TOWER)]
    assert not any("(D47)" in line for line in brought(CLIP, clip_file(towers))[0].report.remarks)
    incoming, _ = brought(CLIP, clip_file(towers, scale=5.0))
    assert any("(D47)" in line for line in incoming.report.remarks)


def test_what_a_tower_lacks_is_told_by_its_name() -> None:
    file = clip_file([tower_state(TEXT_TOWER), tower_state(IMAGE_TOWER)])
    gone = "encoder.encoder_1.transformer.1.feed_forward.linear_2.weight"
    with pytest.raises(CheckpointError, match=r"towers\.image\.encoder\.layers\.1\.feed_forward"):
        brought(CLIP, {name: tensor for name, tensor in file.items() if name != gone})
    with pytest.raises(CheckpointError, match="no `stream_1`"):
        brought({n: v for n, v in CLIP.items() if n != "stream_1"}, file)


def vilt_file(config: dict[str, Any] = VILT) -> dict[str, Tensor]:
    state = random_state(config)
    name = "embedding.word_patch"
    state[f"{name}.language_embedding.embedding.weight"] = torch.randn(VOCABULARY, HIDDEN)
    state[f"{name}.vision_embedding.cls_emb"] = torch.randn(1, 1, HIDDEN)
    state[f"{name}.vision_embedding.projection.weight"] = torch.randn(HIDDEN, 3, SIDE, SIDE) * 0.1
    return state


def test_words_and_patches_in_one_row() -> None:
    """ViLT: texts are filled up to `seq_length`, behind which positions of images begin."""
    torch.manual_seed(0)
    state = vilt_file()
    _, ours = brought(VILT, state)
    theirs = Seeing(VILT, state)
    ids, layout = captions()
    pixels = theirs.pixels = torch.randn(2, 3, 24, 16)
    batch = Batch({"src": Stream({"ids": ids, "pixels": pixels}, layout)})
    seg = torch.cat([layout.valid.long(), torch.full((2, PATCHES), 2)], 1)
    expected, out = theirs.encode(ids, seg), ours.encode(batch)
    valid = seg > 0
    close(out.hidden.states[valid], expected[valid])
    close(ours.target["match"].logits(out, batch), theirs.head("sp", expected))
    logits = ours.target["mlm"].logits(out, batch).unflatten(0, expected.shape[:2])
    close(logits[valid], theirs.head("mlm", expected)[valid])
    # Shorter rows have their images at the same positions.
    short = Stream({"ids": ids[1:, :6], "pixels": pixels[1:]}, layout_of((6,)))
    close(ours.encode(Batch({"src": short})).hidden.states[0], expected[1][valid[1]])


def test_square_images_bring_the_objective_of_vilt() -> None:
    state = vilt_file()
    config = VILT | {"image_height": 16, "tie_weights": True}
    words = state["embedding.word_patch.language_embedding.embedding.weight"]
    state["target.mlm.linear_2.weight"] = words
    incoming, ours = brought(config, state)
    objective: Any = incoming.model.objective
    assert (objective.name, objective.length, objective.transform.size) == ("vilt", 9, 16)
    assert "target.mlm.output.weight" in incoming.model.ties
    assert torch.equal(ours.target["mlm"].output.weight, words)


def test_texts_that_leave_no_positions_for_images_are_refused() -> None:
    with pytest.raises(CheckpointError, match="the seq_length that"):
        brought(VILT | {"seq_length": 15}, vilt_file())
    with pytest.raises(CheckpointError, match="word beside word_patch"):
        brought(VILT | {"embedding": ["word_patch", "word"]}, vilt_file())


@pytest.mark.parametrize("config", [DALLE, TALK2FACE])
def test_captions_and_codes_in_one_row(config: dict[str, Any]) -> None:
    """Their segments are what all may see (1) and what follows (2), which positions run through."""
    torch.manual_seed(0)
    state = random_state(config)
    incoming, ours = brought(config, state)
    objective = incoming.model.objective
    assert isinstance(objective, DalleObjective.Config)
    assert (objective.length, objective.side, objective.aligned) == (11, 2, False)
    assert not objective.supervise_text
    layout = layout_of(LENGTHS)
    words = torch.tensor([5, 3])
    layout.prefix = words
    segments = ((torch.arange(9) >= words[:, None]) & layout.valid).long()
    ids = torch.randint(1, VOCABULARY, layout.valid.shape) * layout.valid
    batch = Batch({"src": Stream({"ids": ids, "segments": segments}, layout)})
    seg = (segments + 1) * layout.valid
    expected, out = Original(config, state).encode(ids, seg), ours.encode(batch)
    close(out.hidden.states[layout.valid], expected[layout.valid])
    scores = Original(config, state).head("lm", expected)[layout.valid]
    for target in ("text", "image"):
        logits = ours.target[target].logits(out, batch).unflatten(0, expected.shape[:2])
        close(logits[layout.valid], scores)


def test_a_file_of_clip_becomes_a_checkpoint(tmp_path: Path) -> None:
    file = clip_file([tower_state(TEXT_TOWER), tower_state(IMAGE_TOWER)])
    torch.save(file, tmp_path / "clip.bin")
    (tmp_path / "c.json").write_text(json.dumps(CLIP))
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(VOCABULARY - 5))]
    (tmp_path / "vocab.txt").write_text("".join(f"{name}\n" for name in names))
    words = [f"from={tmp_path / 'clip.bin'}", f"config={tmp_path / 'c.json'}"]
    words += [f"to={tmp_path / 'o'}", "tokenizer=wordpiece"]
    assert main("convert", [*words, f"tokenizer.vocab={tmp_path / 'vocab.txt'}"]) == 0
    model = load_saved(tmp_path / "o")
    projection = model.target["contrast"].projections[1].weight
    assert torch.equal(projection, file["target.clr.encoder_1_projection"].T)
