"""Files of TencentPretrain and UER-py compute here what their own formulae compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tencentpretrain.cli import main
from tencentpretrain.convert.incoming import Incoming
from tencentpretrain.convert.original import import_original
from tencentpretrain.errors import CheckpointError
from tencentpretrain.model import Model, build_model
from tencentpretrain.train.load import load_weights
from tencentpretrain.train.tensor_file import LazyTensors
from tencentpretrain.types import TGT, Batch, Stream
from tests.helpers.models import layout_of
from tests.helpers.original import Original
from tests.helpers.original_files import (
    BERT,
    CONFIGS,
    GPT2,
    HIDDEN,
    SEQUENCE,
    T5,
    TARGET_VOCABULARY,
    VOCABULARY,
    random_state,
)
from tests.helpers.saved import load_saved

RELATIVE = "relative_pos_emb.relative_attention_bias.weight"


def bring(config: dict[str, Any], state: dict[str, Tensor], **options: Any) -> Incoming:
    return import_original(config, LazyTensors.of(state), **options)


def build(incoming: Incoming, written: int | None = None) -> Model:
    model = build_model(incoming.model, VOCABULARY, target_vocabulary=written).eval()
    load_weights(model, incoming.tensors)
    return model


def streams(config: dict[str, Any]) -> tuple[Batch, dict[str, Tensor]]:
    """A batch for ours, and `seg` of each stream for theirs."""
    # Their recurrent and convolutional encoders read padding (D79), so there it has none.
    lengths = {"src": (9, 9) if config["encoder"] != "transformer" else (9, 6)}
    if config.get("decoder"):
        lengths[TGT] = (5, 7)
    batch, segs = Batch({}), {}
    for name, counts in lengths.items():
        layout = layout_of(counts)
        ids = torch.randint(1, TARGET_VOCABULARY, layout.valid.shape)
        halves = torch.tensor(counts)[:, None] // 2
        positions = torch.arange(ids.shape[1])
        segments = ((positions >= halves) & layout.valid).long() if name == "src" else 0 * ids
        segs[name] = (segments + 1) * layout.valid
        layout.prefix = halves.squeeze(1) if name == "src" else None
        batch.streams[name] = Stream({"ids": ids * layout.valid, "segments": segments}, layout)
    return batch, segs


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_states_and_logits_are_those_of_the_original(name: str) -> None:
    config = CONFIGS[name]
    state = random_state(config)
    is_apart = config.get("decoder") and not config.get("share_embedding")
    written = TARGET_VOCABULARY if is_apart else None
    incoming = bring(config, state, target_tokenizer_size=written)
    ours, theirs = build(incoming, written), Original(config, state)
    batch, segs = streams(config)
    out = ours.encode(batch)
    states = theirs.encode(batch.streams["src"].inputs["ids"], segs["src"])
    valid = batch.streams["src"].layout.valid
    close(out.encoded["src"].states[valid], states[valid])
    if TGT in batch.streams:
        target = batch.streams[TGT]
        states = theirs.decode(target.inputs["ids"], segs[TGT], states, segs["src"])
        valid = target.layout.valid
        close(out.hidden.states[valid], states[valid])
    for target_name in config["target"]:
        own = {"sp": "sop" if name == "albert" else "nsp"}.get(target_name, target_name)
        logits, expected = ours.target[own].logits(out, batch), theirs.head(target_name, states)
        if target_name != "sp":
            logits = logits.unflatten(0, expected.shape[:-1])[valid]
            expected = expected[valid]
        close(logits, expected)
    assert set(incoming.report.aside) == set()


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the first UER-py wrote them."""
    changes = {
        "embedding.word.embedding": "embedding.word_embedding",
        "embedding.pos.embedding": "embedding.position_embedding",
        "embedding.seg.embedding": "embedding.segment_embedding",
        "target.mlm.linear_": "target.mlm_linear_",
        "target.mlm.layer_norm": "target.layer_norm",
        "target.sp.linear_": "target.nsp_linear_",
        "target.lm.output_layer": "target.output_layer",
        "decoder.": "target.decoder.",
        "tgt_embedding.word.embedding": "target.embedding.word_embedding",
        "tgt_embedding.": "target.embedding.",
    }
    renamed = {}
    for name, tensor in state.items():
        for new, old in changes.items():
            if name.startswith(new):
                name = old + name.removeprefix(new)
                break
        renamed[name] = tensor
    return renamed


@pytest.mark.parametrize("name", ["bert", "gpt2", "bart"])
def test_oldest_names_mean_the_same(name: str) -> None:
    state = random_state(CONFIGS[name])
    expected, found = bring(CONFIGS[name], state), bring(CONFIGS[name], old_names(state))
    assert found.model == expected.model
    assert all(torch.equal(found.tensors[n], t) for n, t in expected.tensors.items())


@pytest.mark.parametrize(
    ("target", "expected"), [("bert", ["mlm", "nsp"]), ("albert", ["mlm", "sop"])]
)
def test_old_targets_and_parts_mean_the_same(target: str, expected: list[str]) -> None:
    config = BERT | {"target": target, "embedding": "word_pos_seg", "data_processor": None}
    assert list(bring(config, random_state(BERT)).model.target) == expected


def test_d1_the_live_table_of_relative_positions_is_taken() -> None:
    """Of a file of TencentPretrain the one in the layers, of one of UER-py the only one."""
    state = random_state(T5)
    live, dead = state[f"encoder.transformer.0.{RELATIVE}"], state[f"encoder.{RELATIVE}"]
    assert not torch.equal(live, dead)
    incoming = bring(T5, state)
    assert torch.equal(incoming.tensors["encoder.relative.weight"], live)
    assert any("(D1)" in line for line in incoming.report.remarks)
    of_uer = {name: t for name, t in state.items() if f"0.{RELATIVE}" not in name}
    of_uer = {n: t for n, t in of_uer.items() if RELATIVE not in n or n == f"encoder.{RELATIVE}"}
    incoming = bring(T5, of_uer)
    assert torch.equal(incoming.tensors["encoder.relative.weight"], dead)
    assert any("(D1)" in line for line in incoming.report.remarks)
    state[f"encoder.{RELATIVE}"] = live
    assert not any("(D1)" in line for line in bring(T5, state).report.remarks)


def test_d3_nothing_is_left_out_silently() -> None:
    state = random_state(BERT)
    missing = {n: t for n, t in state.items() if "transformer.1.feed_forward.linear_1" not in n}
    with pytest.raises(CheckpointError, match=r"encoder\.layers\.1\.feed_forward\.up\.weight"):
        bring(BERT, missing)
    with pytest.raises(CheckpointError, match="`strange` is unknown; allow it"):
        bring(BERT, state | {"strange": torch.ones(1)})
    incoming = bring(BERT, state | {"strange": torch.ones(1)}, allow_unexpected=["str*"])
    assert list(incoming.aside) == ["strange"]
    with pytest.raises(CheckpointError, match=r"is \[32, 16\] by the config, but \[64, 16\]"):
        bring(BERT | {"feedforward_size": 32}, random_state(BERT | {"feedforward_size": 64}))
    with pytest.raises(CheckpointError, match=r"layers\.2\.attention\.query\.weight.*has not"):
        bring(BERT | {"layers_num": 2}, state)


@pytest.mark.parametrize("prefix", ["embedding.", "embedding.dual."])
def test_d10_both_names_of_towers_are_read(prefix: str) -> None:
    config = SEQUENCE | {"encoder": "lstm", "target": []}
    state = random_state(config)
    dual = {
        "embedding": ["dual"],
        "encoder": "dual",
        "target": [],
        "stream_0": {"embedding": ["word"], "encoder": "lstm"},
        "stream_1": {"embedding": ["word"], "encoder": "lstm"},
    }
    towers = {}
    for number in (0, 1):
        for name, tensor in state.items():
            kind, _, rest = name.partition(".")
            start = prefix if kind == "embedding" else "encoder."
            towers[f"{start}{kind}_{number}.{rest}"] = tensor
    incoming = bring(config | dual, towers)
    expected = bring(config, state)
    assert incoming.model == expected.model
    assert all(torch.equal(incoming.tensors[n], t) for n, t in expected.tensors.items())
    towers["encoder.encoder_1.rnn.weight_ih_l0"] = torch.zeros(4 * HIDDEN, HIDDEN)
    with pytest.raises(CheckpointError, match="the config says that both towers are one"):
        bring(config | dual | {"tie_weights": True}, towers)
    assert list(bring(config | dual, towers).model.towers) == ["pair"]
    del towers["encoder.encoder_0.rnn.weight_ih_l0"]
    with pytest.raises(CheckpointError, match="has no counterpart"):
        bring(config | dual | {"tie_weights": True}, towers)


def siamese(config: dict[str, Any], *norms: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Two equal towers, and the gains of the norms that follow their embeddings."""
    keys = {"embedding": config["embedding"], "encoder": config["encoder"]}
    dual = {"embedding": ["dual"], "encoder": "dual", "stream_0": keys, "stream_1": keys}
    state: dict[str, Tensor] = {}
    for number in (0, 1):
        for name, tensor in random_state(config).items():
            kind, _, rest = name.partition(".")
            outer = "embedding.dual." if kind == "embedding" else "encoder."
            state[f"{outer}{kind}_{number}.{rest}"] = tensor
    for number, gain in enumerate(norms):
        state[f"embedding.dual.stream_{number}_layer_norm.gamma"] = gain
        state[f"embedding.dual.stream_{number}_layer_norm.beta"] = gain + 1
    return config | dual | {"tie_weights": True}, state


def test_d23_embeddings_of_towers_are_normalised_as_often_as_there() -> None:
    bert = BERT | {"target": []}
    gain = torch.randn(HIDDEN)
    config, state = siamese(bert, gain, gain)
    incoming = bring(config, state)
    assert incoming.model.embedding.norm_again
    assert not incoming.report.aside
    batch, segs = streams(bert)
    theirs = Original(bert, random_state(bert))
    second = {"second.gamma": gain, "second.beta": gain + 1}
    theirs.state |= second
    inner = theirs.embed
    theirs.embed = lambda *given: theirs.norm("second", inner(*given))  # type: ignore[method-assign]
    expected = theirs.encode(batch.streams["src"].inputs["ids"], segs["src"])
    valid = batch.streams["src"].layout.valid
    close(build(incoming).encode(batch).encoded["src"].states[valid], expected[valid])


def test_d23_second_norms_that_differ_are_kept_aside_with_a_warning() -> None:
    config, state = siamese(BERT | {"target": []}, torch.ones(HIDDEN), torch.zeros(HIDDEN))
    incoming = bring(config, state)
    assert not incoming.model.embedding.norm_again
    assert len(incoming.aside) == 4
    assert any("(D23)" in line for line in incoming.report.remarks)


def test_d24_its_norm_is_chosen_and_can_be_replaced() -> None:
    incoming = bring(BERT, random_state(BERT))
    assert incoming.model.embedding.norm == "legacy"
    assert any("(D24)" in line for line in incoming.report.remarks)
    overrides = {"encoder": {"norm": "layer", "norm_eps": 1e-12}}
    changed = bring(BERT, random_state(BERT), overrides=overrides)
    assert getattr(changed.model.encoder, "norm", None) == "layer"


@pytest.mark.parametrize(
    ("names", "target"),
    [
        ({"output_layer_1": (HIDDEN, HIDDEN), "output_layer_2": (7, HIDDEN)}, "classify"),
        ({"output_layer": (7, HIDDEN)}, "tag"),
        ({"output_layer": (2, HIDDEN)}, "span"),
    ],
)
def test_heads_of_fine_tuning_are_targets(names: dict[str, tuple[int, int]], target: str) -> None:
    state = random_state(BERT | {"target": []})
    for name, shape in names.items():
        state |= {f"{name}.weight": torch.randn(shape), f"{name}.bias": torch.randn(shape[0])}
    incoming = bring(BERT, state)
    assert list(incoming.model.target) == [target]
    last = list(names)[-1]
    found = incoming.tensors[f"target.{target}.output.weight"]
    assert torch.equal(found, state[f"{last}.weight"])
    assert any("run_cmrc.py" in line for line in incoming.report.remarks) == (target == "span")
    if target == "span":
        overrides = {"target": {"span": None, "tag": {"classes": 2}}}
        assert list(bring(BERT, state, overrides=overrides).model.target) == ["tag"]


def test_weights_without_their_heads_are_an_encoder() -> None:
    incoming = bring(BERT, random_state(BERT | {"target": []}))
    assert not incoming.model.target
    assert any("no tensors of the target `mlm`" in line for line in incoming.report.remarks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "transfomer"}, "did you mean `transformer`"),
        ({"embedding": ["word", "posi"]}, "the embedding `posi`"),
        ({"mask": "diagonal"}, "the mask `diagonal`"),
        ({"hidden_act": "linear"}, "the config says `linear`"),
        ({"target": ["crl"]}, "the target `crl` cannot be converted"),
        ({"relative_position_embedding": True}, "before scores are divided"),
    ],
)
def test_unknown_parts_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        bring(BERT | changes, random_state(BERT))


def test_tied_tensors_with_two_values_are_refused() -> None:
    state = random_state(GPT2)
    state["target.lm.output_layer.weight"] = state["target.lm.output_layer.weight"] + 1
    with pytest.raises(CheckpointError, match="the config says that they are tied"):
        bring(GPT2, state)


@pytest.mark.parametrize("is_old", [True, False])
def test_a_file_becomes_a_checkpoint(tmp_path: Path, is_old: bool) -> None:
    """Through the command, from both formats of torch, with tokenizer and config."""
    state = random_state(BERT)
    torch.save(state, tmp_path / "m.bin", _use_new_zipfile_serialization=not is_old)
    (tmp_path / "c.json").write_text(json.dumps(BERT))
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(VOCABULARY - 5))]
    (tmp_path / "vocab.txt").write_text("".join(f"{name}\n" for name in names))
    words = [f"from={tmp_path / 'm.bin'}", f"config={tmp_path / 'c.json'}", f"to={tmp_path / 'o'}"]
    words += ["tokenizer=wordpiece", f"tokenizer.vocab={tmp_path / 'vocab.txt'}"]
    assert main("convert", words) == 0
    model = load_saved(tmp_path / "o")
    assert torch.equal(model.embedding.word.weight, state["embedding.word.embedding.weight"])


def test_d12_flags_that_the_original_does_not_read_are_told() -> None:
    """Its BLOOM was trained without ALiBi, so that is what its files are."""
    config = GPT2 | {"alibi_position_embedding": True, "embedding": ["word"]}
    incoming = bring(config, random_state(config))
    assert getattr(incoming.model.encoder, "alibi", None) is False
    assert any("(D12)" in line for line in incoming.report.remarks)


def test_d25_decoders_with_two_kinds_of_norms_are_refused() -> None:
    config = T5 | {"layernorm": "rms"}
    with pytest.raises(CheckpointError, match=r"a layer norm where all others are rms \(D25\)"):
        bring(config, random_state(config))


def test_d40_waves_are_those_of_the_original_not_of_pegasus() -> None:
    incoming = bring(CONFIGS["pegasus"], random_state(CONFIGS["pegasus"]))
    waves: Any = incoming.model.embedding.parts["sinusoidal"]
    assert (waves.layout, waves.offset, waves.inclusive) == ("interleaved", 2, True)


def test_d43_tied_outputs_read_states_as_they_are_with_a_remark() -> None:
    incoming = bring(T5, random_state(T5))
    assert getattr(incoming.model.target["lm"], "scale_states", None) is False
    assert any("(D43)" in line for line in incoming.report.remarks)
