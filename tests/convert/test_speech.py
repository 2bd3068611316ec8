"""Speech2Text and Whisper: how sounds are prepared, tokenizers, continuations, older files."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from tokenizers import Tokenizer as Rust
from tokenizers import decoders, models, pre_tokenizers

from tencentpretrain.config import decode
from tencentpretrain.convert.arrival import Request, arrive
from tencentpretrain.convert.departure import depart
from tencentpretrain.convert.families.speech import S2T, WHISPER
from tencentpretrain.convert.huggingface import import_model
from tencentpretrain.convert.original import import_original
from tencentpretrain.convert.tokenizer_files import read_tokenizer
from tencentpretrain.convert.weights import read_json
from tencentpretrain.data.media.filter_banks import FilterBank
from tencentpretrain.data.objectives.s2t import S2tObjective
from tencentpretrain.errors import CheckpointError
from tencentpretrain.generate.decoding import Decoding
from tencentpretrain.generate.engine import Engine
from tencentpretrain.generate.written import Written
from tencentpretrain.model import Model, build_model
from tencentpretrain.tokenizers.base import TOKENIZERS, Tokenizer, build_tokenizer
from tencentpretrain.train.load import load_weights
from tencentpretrain.train.tensor_file import LazyTensors, open_tensors
from tencentpretrain.types import Stream
from tests.helpers.models import layout_of
from tests.helpers.reference import HIDDEN, MODELS, VOCABULARY, Pair, pair, reference, save
from tests.helpers.sounds import RATE, wave

transformers = pytest.importorskip("transformers")

TEXTS = ["the quick brown fox", "Seven  men", "jumps over ünïcode", "", "<s> not a token", "日本"]
STEPS, START = 7, 2


def objective(folder: Path) -> S2tObjective.Config:
    found = arrive(folder, Request()).incoming.model.objective
    assert isinstance(found, S2tObjective.Config)
    return found


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("s2t", {"feature_size": 10, "num_mel_bins": 10, "normalize_vars": False}),
        ("s2t", {"feature_size": 10, "num_mel_bins": 10, "sampling_rate": 8000}),
        ("s2t", {"feature_size": 10, "num_mel_bins": 10, "do_ceptral_normalize": False}),
        ("whisper", {"feature_size": 10, "chunk_length": 1}),
    ],
)
def test_preparation_goes_and_comes_back(
    case: str, options: dict[str, Any], tmp_path: Path
) -> None:
    name = "Speech2Text" if case == "s2t" else "Whisper"
    theirs = getattr(transformers, f"{name}FeatureExtractor")(**options)
    save(reference(case), tmp_path / "theirs")
    theirs.save_pretrained(tmp_path / "theirs")
    arrive(tmp_path / "theirs", Request()).write(tmp_path / "ours")
    depart(tmp_path / "ours").write(tmp_path / "back")
    back = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "back")
    assert type(back) is type(theirs)
    rate = options.get("sampling_rate", RATE)
    samples = wave(0.6, rate=rate)
    # A band that hears a steady tone hardly deviates, and dividing by that makes rounding large.
    samples *= np.linspace(0.01, 1, len(samples), dtype="f")
    expected = theirs(samples, sampling_rate=rate, return_tensors="np")["input_features"][0]
    again = back(samples, sampling_rate=rate, return_tensors="np")["input_features"][0]
    ours = FilterBank(objective(tmp_path / "theirs").bank)(samples)
    assert np.array_equal(again, expected)
    assert np.abs(ours - (expected.T if case == "whisper" else expected)).max() < 1e-5


@pytest.mark.parametrize(
    ("content", "message"),
    [({"dither": 0.5}, "`dither` must be"), ({"padding_value": 1.0}, "`padding_value` must be")],
)
def test_other_preparations_become_remarks(
    content: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save(reference("s2t"), tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    lines = arrive(tmp_path, Request()).report.lines()
    assert any(message in line and "model.objective.bank is" in line for line in lines)


def pieces() -> bytes:
    """A SentencePiece model whose first pieces are `<unk> <s> </s>`, as fairseq's are."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over seven lazy men"] * 30),
        model_writer=written,
        vocab_size=70,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return written.getvalue()


@pytest.mark.parametrize("is_lower", [False, True])
def test_speech2text_tokenizers_give_the_same_ids(is_lower: bool, tmp_path: Path) -> None:
    """Their numbers are in a file of their own: fairseq's dictionary begins otherwise."""
    content = pieces()
    model = sentencepiece.SentencePieceProcessor(model_proto=content)
    own = [model.id_to_piece(number) for number in range(3, len(model))]
    names = ["<s>", "<pad>", "</s>", "<unk>", *reversed(own[5:])]
    (tmp_path / "a.model").write_bytes(content)
    (tmp_path / "vocab.json").write_text(json.dumps({n: i for i, n in enumerate(names)}))
    theirs = transformers.Speech2TextTokenizer(
        str(tmp_path / "vocab.json"), str(tmp_path / "a.model"), do_lower_case=is_lower
    )
    theirs.save_pretrained(tmp_path / "theirs")
    ours = read_tokenizer(tmp_path / "theirs", "speech_to_text")
    assert ours is not None
    same_ids(ours, theirs)
    assert (ours.bos, ours.pad, ours.eos, ours.unk) == (0, 1, 2, 3)
    save(reference("s2t"), tmp_path / "theirs")
    arrive(tmp_path / "theirs", Request()).write(tmp_path / "ours")
    depart(tmp_path / "ours").write(tmp_path / "back")
    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert type(back).__name__ == "Speech2TextTokenizer"
    same_ids(ours, back)


def same_ids(ours: Tokenizer, theirs: Any) -> None:
    for text in TEXTS:
        if "<s>" in text:
            continue  # there it becomes the special token, here texts forge none
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_whisper_tokenizers_give_the_same_ids(tmp_path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "q"), ("u", "i")]
    names = [*alphabet, *("".join(pair) for pair in merges), "<|endoftext|>"]
    rust = Rust(models.BPE({name: number for number, name in enumerate(names)}, merges))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>"]
    rust.add_special_tokens([*special, "<|notimestamps|>"])
    rust.save(str(tmp_path / "tokenizer.json"))
    theirs = transformers.WhisperTokenizer.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = read_tokenizer(tmp_path / "theirs", "whisper")
    assert ours is not None
    same_ids(ours, theirs)
    for token in special:
        assert ours.id(token) == theirs.convert_tokens_to_ids(token)
    assert ours.eos == ours.id("<|endoftext|>")


@pytest.fixture(scope="module", params=["s2t", "whisper"])
def both(request: pytest.FixtureRequest) -> Pair:
    return pair(request.param)


@pytest.mark.parametrize("beams", [1, 3])
def test_continuations_are_those_of_transformers(both: Pair, beams: int) -> None:
    from transformers import GenerationConfig, GenerationMixin

    options = {"do_sample": False, "max_new_tokens": STEPS, "num_beams": beams}
    ends = {"eos_token_id": 0, "pad_token_id": 1, "decoder_start_token_id": START}
    config = GenerationConfig(**options, **ends)
    both.theirs.generation_config = config
    # Whisper's own method asks for languages and time stamps, which a tiny vocabulary has not.
    theirs = GenerationMixin.generate(
        both.theirs, both.arguments["input_features"], generation_config=config
    )
    rows = [Written(STEPS, (0,)) for _ in range(3)]
    memory = both.ours.read(both.batch.streams["src"])
    Engine(both.ours, start=(START,)).write(memory, rows, Decoding(beams=beams))
    for row, expected in zip(rows, theirs.tolist(), strict=True):
        written = expected[1 : 1 + len(row.ids)]
        assert row.ids == written
        assert all(token == 1 for token in expected[1 + len(row.ids) :])


def test_rows_are_those_of_sounds_without_padding(both: Pair) -> None:
    """The reference lets the last positions of S2T depend on padding; here nothing does."""
    frames, lengths = both.batch.streams["src"].inputs["frames"], (22, 13, 6)
    layout = layout_of(lengths)
    states = both.ours.read(Stream({"frames": frames}, layout)).states
    for row, length in enumerate(lengths):
        alone = frames[row : row + 1, :length]
        expected = both.ours.read(Stream({"frames": alone}, layout_of([length]))).states[0]
        torch.testing.assert_close(states[row, : len(expected)], expected, rtol=1e-5, atol=1e-5)
        if both.family is S2T:
            reference_states = both.theirs.model.encoder(alone).last_hidden_state[0]
            torch.testing.assert_close(expected, reference_states, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "step"),
    [(torch.float32, 0.002), (torch.float16, 0.002), (torch.bfloat16, 0.01)],
    ids=["fp32", "fp16", "bf16"],
)
def test_other_positions_of_whisper_are_refused(dtype: torch.dtype, step: float) -> None:
    model = reference("whisper")
    tensors = {name: tensor.to(dtype, copy=True) for name, tensor in model.state_dict().items()}
    tensors["model.encoder.embed_positions.weight"][3] += step
    with pytest.raises(CheckpointError, match="must hold the fixed waves of Whisper"):
        import_model(WHISPER, model.config.to_dict(), LazyTensors.of(tensors))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("stored", ["short", "fp32"])
def test_rounded_positions_of_whisper_are_known(dtype: torch.dtype, stored: str) -> None:
    """Also where somebody has stored them in fp32 again."""
    config = transformers.WhisperConfig(**MODELS["whisper"][2] | {"max_source_positions": 1500})
    model = transformers.WhisperForConditionalGeneration(config).to(dtype)
    if stored == "fp32":
        model = model.float()
    found = import_model(WHISPER, config.to_dict(), LazyTensors.of(model.state_dict()))
    assert found.report.empty == ["model.encoder.embed_positions.weight"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_whisper_in_half_precision_goes_and_comes_back(dtype: str, tmp_path: Path) -> None:
    save(reference("whisper"), tmp_path / "theirs")
    arrive(tmp_path / "theirs", Request(), dtype).write(tmp_path / "ours")
    depart(tmp_path / "ours").write(tmp_path / "back")
    again = arrive(tmp_path / "back", Request()).incoming.tensors
    before = open_tensors(tmp_path / "ours" / "model.safetensors")
    assert {*again} == {*before}
    assert all(torch.equal(again[name], before[name]) for name in before)


def test_english_models_have_no_language_in_their_prompt() -> None:
    for rows, prompt in ((51864, 2), (51865, 4)):
        settings = WHISPER.settings({"vocab_size": rows})
        found = WHISPER.objective_keys(settings)
        assert found is not None
        assert len(found["prompt"]) == prompt


ORIGINAL = {
    "emb_size": HIDDEN,
    "hidden_size": HIDDEN,
    "feedforward_size": 64,
    "heads_num": 4,
    "layers_num": 3,
    "decoder_layers_num": 2,
    "max_seq_length": 32,
    "max_audio_frames": 100,
    "dropout": 0.1,
    "hidden_act": "relu",
    "embedding": ["speech", "sinusoidalpos"],
    "tgt_embedding": ["word", "sinusoidalpos"],
    "remove_embedding_layernorm": True,
    "layernorm_positioning": "pre",
    "encoder": "transformer",
    "mask": "fully_visible",
    "decoder": "transformer",
    "target": ["lm"],
    "tie_weights": True,
    "conv_layers_num": 2,
    "audio_feature_size": 10,
    "conv_channels": [12, 2 * HIDDEN],
    "conv_kernel_sizes": [5, 3],
    "data_processor": "s2t",
}
BLOCK = {
    "self_attn.q_proj": "self_attn.linear_layers.0",
    "self_attn.k_proj": "self_attn.linear_layers.1",
    "self_attn.v_proj": "self_attn.linear_layers.2",
    "self_attn.out_proj": "self_attn.final_linear",
    "encoder_attn.q_proj": "context_attn.linear_layers.0",
    "encoder_attn.k_proj": "context_attn.linear_layers.1",
    "encoder_attn.v_proj": "context_attn.linear_layers.2",
    "encoder_attn.out_proj": "context_attn.final_linear",
    "fc1": "feed_forward.linear_1",
    "fc2": "feed_forward.linear_2",
}
NORMS = {
    "encoder": {"self_attn_layer_norm": "layer_norm_1", "final_layer_norm": "layer_norm_2"},
    "decoder": {
        "self_attn_layer_norm": "layer_norm_1",
        "encoder_attn_layer_norm": "layer_norm_2",
        "final_layer_norm": "layer_norm_3",
    },
}


def original_name(name: str) -> str:
    """What the original calls a tensor of `transformers`, as its converter has it."""
    name = name.removeprefix("model.")
    side, _, rest = name.partition(".")
    if rest.startswith("conv."):
        *_, number, kind = rest.split(".")
        return f"embedding.speech.conv.conv_layers.{number}.0.{kind}"
    if rest.startswith("layers."):
        _, number, inner = rest.split(".", 2)
        module, kind = inner.rsplit(".", 1)
        stack = "transformer" if side == "encoder" else "transformer_decoder"
        if module in NORMS[side]:
            kind = {"weight": "gamma", "bias": "beta"}[kind]
            return f"{side}.{stack}.{number}.{NORMS[side][module]}.{kind}"
        return f"{side}.{stack}.{number}.{BLOCK[module]}.{kind}"
    if rest.startswith("layer_norm."):
        kind = {"weight": "gamma", "bias": "beta"}[rest.split(".")[1]]
        return f"{side}.layer_norm.{kind}"
    words = "tgt_embedding.word.embedding.weight"
    return words if side == "decoder" else "target.lm.output_layer.weight"


def from_original(theirs: Any, is_old: bool = False, **changes: Any) -> Model:
    """Our model for a reference in a file of the original, with published norms."""
    tensors = {
        original_name(name): tensor
        for name, tensor in theirs.state_dict().items()
        if "embed_positions" not in name
    }
    if is_old:
        tensors = {
            name.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
            if "conv_layers" in name
            else name: tensor
            for name, tensor in tensors.items()
        }
    # Its own norms divide by another deviation (D24); these weights were made with the usual ones.
    norms = {"norm": "layer", "norm_eps": 1e-5}
    found = import_original(
        ORIGINAL | changes,
        LazyTensors.of(tensors),
        overrides={"encoder": norms, "decoder": {**norms, "heads": 2, "ffn": 48}},
    )
    model = build_model(found.model, VOCABULARY).eval()
    load_weights(model, found.tensors)
    return model


@pytest.mark.parametrize("is_old", [False, True])
def test_files_of_the_original_compute_what_transformers_does(is_old: bool) -> None:
    known = pair("s2t")
    model = from_original(known.theirs, is_old)
    logits = model.target["lm"].logits(model.encode(known.batch), known.batch)
    expected = known.ours.target["lm"].logits(known.ours.encode(known.batch), known.batch)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_other_contents_beside_speech_are_refused() -> None:
    with pytest.raises(CheckpointError, match="names word beside speech"):
        from_original(reference("s2t"), embedding=["speech", "word"])
    changes = {"conv_channels": [12, 14, 64], "conv_kernel_sizes": [5, 3, 3]}
    with pytest.raises(CheckpointError, match="conv_channels must be alike"):
        from_original(reference("s2t"), **changes)


def test_the_numbering_of_pieces_needs_an_unknown_one(tmp_path: Path) -> None:
    (tmp_path / "a.model").write_bytes(pieces())
    (tmp_path / "numbers.json").write_text('{"<s>": 0, "the": 1}')
    keys = {"vocab": str(tmp_path / "a.model"), "numbers": str(tmp_path / "numbers.json")}
    config = decode(TOKENIZERS.config_class("sentencepiece"), {"name": "sentencepiece", **keys})
    with pytest.raises(Exception, match="has no `<unk>`"):
        build_tokenizer(config)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("s2t", {"num_mel_bins": 10, "feature_size": 10, "normalize_vars": False}),
        ("whisper", {"feature_size": 10, "chunk_length": 7}),
    ],
)
@pytest.mark.parametrize("is_told", [True, False])
def test_bare_models_keep_how_sounds_are_prepared(
    name: str, content: dict[str, Any], is_told: bool, tmp_path: Path
) -> None:
    theirs, ours, back = (tmp_path / part for part in ("theirs", "ours", "back"))
    save(reference(name).model, theirs)
    (theirs / "preprocessor_config.json").write_text(json.dumps(content))
    overrides = {} if is_told else {"objective": None}
    arrival = arrive(theirs, Request(overrides=overrides))
    assert not arrival.incoming.model.target
    arrival.write(ours)
    depart(ours).write(back)
    written = read_json(back / "preprocessor_config.json")
    expected = content if is_told else {"feature_size": 10}
    assert {key: written[key] for key in expected} == expected
