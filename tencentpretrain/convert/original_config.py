"""JSON configs of TencentPretrain and UER-py as configs of ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from tencentpretrain.config import nearest
from tencentpretrain.convert.family import Plain
from tencentpretrain.convert.keys import Settings
from tencentpretrain.convert.original_images import CODES, PROJECTION, image_parts, reads_images
from tencentpretrain.convert.original_speech import (
    FIRST,
    SPEECH,
    WAVES,
    speech_objective,
    speech_parts,
)
from tencentpretrain.convert.report import Report
from tencentpretrain.errors import CheckpointError
from tencentpretrain.train.tensor_file import LazyTensors

EPS: Final = 1e-6
"""Of the embedding's norm and of that before the output layer, whatever the config says."""
SPAN_ENDS: Final = 2
"""Rows of the output layer for spans: the start and the end."""
NORMS: Final = {"normal": "legacy", "t5": "t5", "rms": "rms"}
ACTIVATIONS: Final = {"gelu": "gelu", "gelu_fast": "gelu_tanh", "relu": "relu", "silu": "silu"}
MASKS: Final = {
    "fully_visible": "full",
    "causal": "causal",
    "causal_with_prefix": "prefix",
    "prefix": "prefix",
}
RECURRENT: Final = {"rnn": "rnn", "lstm": "lstm", "gru": "gru"}
SEPARATE: Final = {"birnn": "rnn", "bilstm": "lstm", "bigru": "gru"}
"""Encoders of two stacks that read in opposite directions."""
PARTS: Final = {"word": "word", "pos": "position", "seg": "segment", "sinusoidalpos": "sinusoidal"}
OLD_TARGETS: Final = {
    "bert": ("mlm", "sp"),
    "albert": ("mlm", "sp"),
    "nsp": ("sp",),
    "sop": ("sp",),
    **dict.fromkeys(("seq2seq", "t5", "gsg", "bart", "prefixlm"), ("lm",)),
}
"""What UER-py called targets before it had one for each head."""
MARKS: Final = {
    "mlm": "target.mlm.linear_1.weight",
    "sp": "target.sp.linear_1.weight",
    "lm": "target.lm.output_layer.weight",
    "bilm": "target.bilm.output_layer.weight",
    "cls": "target.cls.linear_1.weight",
}
"""Tensors that show that a file has a target."""
OBJECTIVES: Final = {"t5": "t5", "bart": "bart", "gsg": "pegasus", "mt": "translate"}
ENCODER_OBJECTIVES: Final = {"mlm nsp": "bert", "mlm sop": "albert", "mlm": "mlm", "lm": "lm"}
LENGTH: Final = 512
HARMLESS: Final = (
    *("tokenizer", "tgt_tokenizer", "data_processor", "optimizer", "scheduler", "deep_init"),
    *("learning_rate", "warmup", "fp16", "deepspeed", "seq_length", "tgt_seq_length", "beta1"),
    *("labels_num", "prefix_lm_loss", "ignore_index", "pooling", "bidirectional", "beta2"),
)
"""Keys about training, or about parts that a file may not have."""


@dataclass(frozen=True)
class Facts:
    """What the file and the tokenizers tell about a model.

    Args:
        tensors: Theirs, spelled as in the table.
        tokenizer_size: Entries of the tokenizer; None where none is given.
        target_tokenizer_size: The same of what a decoder writes, if that is another one.
    """

    tensors: LazyTensors
    tokenizer_size: int | None
    target_tokenizer_size: int | None

    def rows(self, embedding: str) -> int:
        """Rows of a word table.

        Raises:
            CheckpointError: if the file has none.
        """
        name = f"{embedding}.word.embedding.weight"
        if name not in self.tensors.described:
            raise CheckpointError(f"the file has no `{name}`; {nearest(name, self.tensors)}")
        return self.tensors.described[name].shape[0]

    def vocabulary(self) -> int:
        """Rows of the word table; without one entries of the output layer, if that is there."""
        if FIRST in self.tensors.described:
            return self.rows("tgt_embedding")
        if self.reads_images:
            return self.classes(CODES) if CODES in self.tensors.described else 1
        return self.rows("embedding")

    @property
    def reads_images(self) -> bool:
        """Whether the file has patches of images instead of words."""
        return f"{PROJECTION}.weight" in self.tensors.described

    def classes(self, name: str) -> int:
        """Rows of an output layer."""
        return self.tensors.described[name].shape[0]


def model_data(settings: Settings, facts: Facts, report: Report) -> Plain:
    """Plain data of our model.

    Raises:
        CheckpointError: if a key has a value that means nothing here.
    """
    for name in HARMLESS:
        settings.get(name, None)
    hidden = settings.number("hidden_size", 768)
    emb_size = settings.number("emb_size", hidden)
    data: Plain = {
        "hidden": hidden,
        "embedding": _embedding(settings, "embedding", emb_size),
        "encoder": _encoder(settings, report),
        "ties": {},
    }
    data["embedding"]["size"] = None if emb_size == hidden else emb_size
    if settings.get("decoder", None):
        data["target_embedding"] = _embedding(settings, "tgt_embedding", emb_size)
        data["decoder"] = _stack(settings, settings.number("decoder_layers_num"))
        data["decoder"] |= {"mask": "causal", "relative": _relative(settings)}
        if data["decoder"]["norm"] == "rms" and data["decoder"]["norm_order"] == "pre":
            raise CheckpointError(
                "their decoders end in a layer norm where all others are rms (D25), which has no "
                "counterpart here"
            )
    data["target"] = _targets(settings, facts, report)
    _add_ties(data, settings)
    _add_rows(data, facts)
    data["objective"] = _objective(settings, data)
    return data


def _listed(value: Any) -> list[str]:
    """Names in a list, or joined by underscores as older configs have them."""
    return [str(item) for item in value] if isinstance(value, list) else str(value).split("_")


def _embedding(settings: Settings, key: str, size: int) -> Plain:
    names = _listed(settings.get(key, ["word", "pos", "seg"] if key == "embedding" else ["word"]))
    length = settings.number("max_seq_length", 512)
    others = {
        "norm": "none" if settings.get("remove_embedding_layernorm", False) else "legacy",
        "norm_eps": EPS,
        "dropout": settings.get("dropout", 0.1),
    }
    if reads_images(names):
        return {"parts": image_parts(settings, names, length), **others}
    if SPEECH in names:
        return {"parts": speech_parts(settings, names), **others}
    unknown = [name for name in names if name not in (*PARTS, "dual")]
    if unknown:
        raise CheckpointError(
            f"the config names the embedding `{unknown[0]}`, which cannot be converted; "
            f"{nearest(unknown[0], PARTS)}"
        )
    if "dual" in names:
        stream = settings.get("stream_0")
        names = _listed(stream.get("embedding", ["word", "pos", "seg"]))
    details: dict[str, Plain] = {
        "word": {"scale": "sinusoidalpos" in names},
        "pos": {"length": length},
        "seg": {"types": 2},
        # Token i is at position i + 2, and the longest wave is exactly 10,000 times the shortest.
        "sinusoidalpos": {"layout": "interleaved", "offset": 2, "inclusive": True},
    }
    if key != "embedding" and SPEECH in _listed(settings.get("embedding", "")):
        details["sinusoidalpos"] = WAVES
    return {"parts": {PARTS[name]: details[name] for name in names}, **others}


def _encoder(settings: Settings, report: Report) -> Plain:
    name = settings.get("encoder", "transformer")
    if name == "dual":
        name = settings.get("stream_0").get("encoder", "transformer")
    layers, dropout = settings.number("layers_num", 12), settings.get("dropout", 0.1)
    if name in RECURRENT or name in SEPARATE:
        is_double = name in SEPARATE or bool(settings.get("bidirectional", False))
        return {
            "name": RECURRENT.get(name) or SEPARATE[name],
            "layers": layers,
            "directions": 2 if is_double else 1,
            "separate": name in SEPARATE,
            "dropout": dropout,
        }
    if name == "gatedcnn":
        return {
            "name": "gated_cnn",
            "layers": layers,
            "kernel_size": settings.number("kernel_size", 3),
            "block_size": settings.number("block_size", 2),
            "dropout": dropout,
        }
    if name != "transformer":
        known = ["transformer", "gatedcnn", *RECURRENT, *SEPARATE]
        raise CheckpointError(f"the encoder `{name}` cannot be converted; {nearest(name, known)}")
    mask = str(settings.get("mask", "fully_visible"))
    if mask not in MASKS:
        raise CheckpointError(f"the config has the mask `{mask}`; {nearest(mask, MASKS)}")
    for key in ("alibi_position_embedding", "layer_number_scale"):
        if settings.get(key, False):
            report.remarks.append(
                f"nothing in TencentPretrain reads `{key}`: the model was trained without it (D12)"
            )
    return {
        **_stack(settings, layers),
        "mask": MASKS[mask],
        "relative": _relative(settings),
        "rotary": _rotary(settings),
        "share_blocks": bool(settings.get("parameter_sharing", False)),
        "residual_attention": bool(settings.get("has_residual_attention", False)),
        "kv_heads": settings.get("local_kv_heads_num", None),
    }


def _stack(settings: Settings, layers: int) -> Plain:
    """What encoder and decoder share."""
    activation = str(settings.get("hidden_act", "gelu"))
    norm = str(settings.get("layernorm", "normal"))
    for value, known in ((activation, ACTIVATIONS), (norm, NORMS)):
        if value not in known:
            raise CheckpointError(f"the config says `{value}`; {nearest(value, known)}")
    is_scaled = not settings.get("remove_attention_scale", False)
    if is_scaled and settings.get("relative_position_embedding", False):
        raise CheckpointError(
            "relative positions that are added before scores are divided have no counterpart here"
        )
    return {
        "name": "transformer",
        "layers": layers,
        "heads": settings.number("heads_num", 12),
        "head_size": settings.get("attention_head_size", None),
        "ffn": settings.number("feedforward_size"),
        "gated": settings.get("feed_forward", "dense") == "gated",
        "activation": ACTIVATIONS[activation],
        "norm": NORMS[norm],
        "norm_eps": settings.get("layernorm_eps", EPS),
        "norm_order": settings.get("layernorm_positioning", "post"),
        "bias": not settings.get("remove_transformer_bias", False),
        "scale_scores": is_scaled,
        "dropout": settings.get("dropout", 0.1),
    }


def _relative(settings: Settings) -> Plain | None:
    if not settings.get("relative_position_embedding", False):
        return None
    return {"buckets": settings.number("relative_attention_buckets_num", 32), "distance": 128}


def _rotary(settings: Settings) -> Plain | None:
    if not settings.get("rotary_position_embedding", False):
        return None
    return {"theta": 10000.0, "layout": "interleaved"}


def _targets(settings: Settings, facts: Facts, report: Report) -> Plain:
    """Targets that the config names and the file has, and the heads of fine-tuning."""
    given = settings.get("target", [])
    names = [given] if isinstance(given, str) else list(given)
    names = [name for old in names for name in OLD_TARGETS.get(old, (old,))]
    is_albert = settings.get("data_processor", None) == "albert" or "albert" in str(given)
    present = facts.tensors.described
    if "output_layer_1.weight" in present:
        return {"classify": {"classes": facts.classes("output_layer_2.weight"), **_pool(settings)}}
    if "output_layer.weight" in present:
        classes = facts.classes("output_layer.weight")
        if classes != SPAN_ENDS:
            return {"tag": {"classes": classes}}
        report.remarks.append(
            "`output_layer` has two rows, as that of run_cmrc.py, so it is read as the target "
            "`span`; for a tagger with two tags give model.target.span=null "
            "model.target.tag.classes=2"
        )
        return {"span": {}}
    found: Plain = {}
    for name in names:
        if name not in MARKS:
            raise CheckpointError(
                f"the target `{name}` cannot be converted; {nearest(name, MARKS)}"
            )
        if MARKS[name] not in present and name not in ("lm", "bilm"):
            report.remarks.append(f"the file has no tensors of the target `{name}`")
            continue
        found |= _target(name, settings, facts, is_albert)
    return found


def _target(name: str, settings: Settings, facts: Facts, is_albert: bool) -> Plain:
    activation = ACTIVATIONS.get(str(settings.get("hidden_act", "gelu")), "gelu")
    if name == "mlm":
        return {"mlm": {"activation": activation, "norm": "legacy", "norm_eps": EPS}}
    if name == "sp":
        return {"sop" if is_albert else "nsp": {}}
    if name == "cls":
        classes = facts.classes("target.cls.linear_2.weight")
        return {"classify": {"classes": classes, **_pool(settings)}}
    has_bias = f"target.{name}.output_layer.bias" in facts.tensors.described
    settings.get("has_lmtarget_bias", None)
    smoothing = settings.get("label_smoothing", 0.0)
    return {name: {"bias": has_bias, **({"label_smoothing": smoothing} if name == "lm" else {})}}


def _pool(settings: Settings) -> Plain:
    return {"pooling": settings.get("pooling", "first")}


def _add_ties(data: Plain, settings: Settings) -> None:
    is_tied = bool(settings.get("tie_weights", False))
    is_shared = "decoder" in data and bool(settings.get("share_embedding", False))
    word = "embedding.word.weight"
    if is_shared:
        data["ties"]["target_embedding.word.weight"] = word
    if is_tied and "mlm" in data["target"]:
        data["ties"]["target.mlm.output.weight"] = word
    if is_tied and "lm" in data["target"]:
        written = "decoder" in data and not is_shared
        data["ties"]["target.lm.output.weight"] = f"target_{word}" if written else word


def _add_rows(data: Plain, facts: Facts) -> None:
    """Rows of the word tables, where they are not those of the tokenizers."""
    rows = facts.vocabulary()
    data["vocabulary"] = None if rows == facts.tokenizer_size else rows
    if "decoder" in data and "target_embedding.word.weight" not in data["ties"]:
        written = facts.rows("tgt_embedding")
        # Null would be the rows of the source's table, where those are given.
        is_known = data["vocabulary"] is None and written == facts.target_tokenizer_size
        data["target_vocabulary"] = None if is_known else written


def _objective(settings: Settings, data: Plain) -> Plain | None:
    """What supervises the targets; their decoders start from the token that begins sources."""
    if "patch" in data["embedding"]["parts"]:
        return None
    if "frames" in data["embedding"]["parts"]:
        return speech_objective(settings) if "lm" in data["target"] else None
    length = data["embedding"]["parts"].get("position", {}).get("length", LENGTH)
    length = min(length, LENGTH)
    if "decoder" not in data:
        name = ENCODER_OBJECTIVES.get(" ".join(sorted(data["target"])))
        return None if name is None else {"name": name, "length": length}
    name = OBJECTIVES.get(str(settings.get("data_processor", "")))
    if name is None or "lm" not in data["target"]:
        return None
    return {"name": name, "length": length, "target_length": length, "start": "cls"}
