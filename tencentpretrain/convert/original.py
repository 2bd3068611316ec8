"""Files of TencentPretrain and UER-py: their names, old ones too, and what their code reads.

One naming scheme serves all their models. A file says nothing about itself: its model is in a JSON
config (see `original_config`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from tencentpretrain.config import decode
from tencentpretrain.convert.incoming import Incoming, check_equal, receive, respell
from tencentpretrain.convert.keys import Settings
from tencentpretrain.convert.original_config import model_data
from tencentpretrain.convert.original_facts import Facts
from tencentpretrain.convert.original_image_text import BOTH_SPELLINGS, both_rules, text_length
from tencentpretrain.convert.original_images import image_rules
from tencentpretrain.convert.original_sequences import sequence_rules
from tencentpretrain.convert.original_speech import SPELLING, speech_rules
from tencentpretrain.convert.original_towers import (
    CONTRAST_RULES,
    NORM_RULES,
    are_equal,
    find_pair,
    join_equal,
    respell_second,
    tower_rules,
)
from tencentpretrain.convert.report import Report
from tencentpretrain.convert.table import Rule, Table, modules
from tencentpretrain.convert.transforms import SkippedRows
from tencentpretrain.model import ModelConfig
from tencentpretrain.train.source import merge
from tencentpretrain.train.tensor_file import LazyTensors

RELATIVE: Final = "relative_pos_emb.relative_attention_bias.weight"
ONE_TABLE: Final = f"encoder.{RELATIVE}"
A_LAYER: Final = re.compile(rf"encoder\.transformer\.\d+\.{re.escape(RELATIVE)}")
SIDES: Final = (("embedding", "encoder"), ("target_embedding", "decoder"))
SPELLINGS: Final = (
    # The oldest names, before parts had folders of their own.
    (r"^target\.decoder\.", "decoder."),
    (r"^target\.embedding\.", "tgt_embedding."),
    (r"^((tgt_)?embedding)\.word_embedding\.", r"\1.word.embedding."),
    (r"^((tgt_)?embedding)\.position_embedding\.", r"\1.pos.embedding."),
    (r"^((tgt_)?embedding)\.segment_embedding\.", r"\1.seg.embedding."),
    (r"^target\.mlm_linear_", "target.mlm.linear_"),
    (r"^target\.layer_norm\.", "target.mlm.layer_norm."),
    (r"^target\.(sp|nsp|sop)(_|\.)linear_", "target.sp.linear_"),
    (r"^target\.output_layer\.", "target.lm.output_layer."),
    # Two towers, with and without the name of what holds them.
    (r"^embedding\.(dual\.)?embedding_0\.", "embedding."),
    (r"^encoder\.encoder_0\.", "encoder."),
    (r"^embedding\.dual\.(?=embedding_1\.|stream_)", "embedding."),
    (r"^embedding\.masked_patch\.", "embedding.patch."),
    *BOTH_SPELLINGS,
    SPELLING,
    # A shared block has no number.
    (r"^encoder\.transformer\.(?=[a-z])", "encoder.transformer.0."),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
)
BLOCK: Final = {
    "attention.query": "self_attn.linear_layers.0",
    "attention.key": "self_attn.linear_layers.1",
    "attention.value": "self_attn.linear_layers.2",
    "attention.output": "self_attn.final_linear",
    "attention_norm": "layer_norm_1",
    "feed_forward.up": "feed_forward.linear_1",
    "feed_forward.gate": "feed_forward.linear_gate",
    "feed_forward.down": "feed_forward.linear_2",
}
CROSS: Final = {
    "cross.query": "context_attn.linear_layers.0",
    "cross.key": "context_attn.linear_layers.1",
    "cross.value": "context_attn.linear_layers.2",
    "cross.output": "context_attn.final_linear",
    "cross_norm": "layer_norm_2",
    "feed_forward_norm": "layer_norm_3",
}
TARGETS: Final = {
    "mlm": modules(
        {"dense": "linear_1", "norm": "layer_norm", "output": "linear_2"},
        "target.mlm.",
        "target.mlm.",
    ),
    "nsp": modules({"dense": "linear_1", "output": "linear_2"}, "target.nsp.", "target.sp."),
    "sop": modules({"dense": "linear_1", "output": "linear_2"}, "target.sop.", "target.sp."),
    "lm": modules({"target.lm.output": "target.lm.output_layer"}),
    "bilm": modules({"target.bilm.output": "target.bilm.output_layer"}),
    "classify": (
        *modules({"dense": "linear_1", "output": "linear_2"}, "target.classify.", "target.cls."),
        *modules({"dense": "output_layer_1", "output": "output_layer_2"}, "target.classify."),
    ),
    "tag": modules({"target.tag.output": "output_layer"}),
    "span": modules({"target.span.output": "output_layer"}),
    "match": modules({"dense": "linear_1", "output": "linear_2"}, "target.match.", "target.sp."),
    "text": modules({"target.text.output": "target.lm.output_layer"}),
    "contrast": CONTRAST_RULES,
}
"""Rules of the heads; `output_layer` is what fine-tuning writes beside the model."""


def _body() -> tuple[Rule, ...]:
    rules: list[Rule] = []
    for embedding, stack in SIDES:
        theirs = embedding.replace("target", "tgt")
        names = {"word": "word.embedding", "norm": "layer_norm"}
        rules += modules(names, f"{embedding}.", f"{theirs}.")
        rules += modules({f"{embedding}.position": f"{theirs}.pos.embedding"}, only=("content", 0))
        # Their first row is that of padding.
        rules.append(
            Rule(
                (f"{embedding}.segment.weight",),
                (f"{theirs}.seg.embedding.weight",),
                SkippedRows("segment_rows"),
            )
        )
        rules += modules({f"{stack}.norm": f"{stack}.layer_norm"})
    rules += modules(
        {
            "embedding.projection": "encoder.linear",
            "encoder.relative": ONE_TABLE.removesuffix(".weight"),
            "decoder.relative": "decoder.self_pos_emb.relative_attention_bias",
        }
    )
    encoder = {**BLOCK, "feed_forward_norm": "layer_norm_2"}
    rules += modules(encoder, "encoder.layers.{n}.", "encoder.transformer.{n}.")
    decoder = {**BLOCK, **CROSS}
    rules += modules(decoder, "decoder.layers.{n}.", "decoder.transformer_decoder.{n}.")
    others = (*sequence_rules(), *image_rules(), *speech_rules(), *NORM_RULES)
    # What reads words and patches has rules of its own for the same names, which go first.
    return (*both_rules(), *rules, *others)


TABLE: Final = Table(
    rules=_body(),
    recomputed=(r"(tgt_)?embedding\.(pe|sinusoidalpos\..*)",),
    spellings=SPELLINGS,
)
ASIDE: Final = {
    r"embedding\.stream_[01]_layer_norm\..*": "the towers are one model here, which has one norm",
    r"target\..*|output_layer.*": "the config names no such target",
}


def import_original(
    config: Mapping[str, Any],
    tensors: LazyTensors,
    tokenizer_size: int | None = None,
    target_tokenizer_size: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    allow_unexpected: Sequence[str] = (),
) -> Incoming:
    """Our model for one of TencentPretrain or UER-py.

    Args:
        config: Its JSON config.
        tensors: Its weights, under their names.
        tokenizer_size: Entries of the tokenizer; None where none is given.
        target_tokenizer_size: The same of what a decoder writes, if that is another one.
        overrides: Plain data of the model that differs from what `config` says.
        allow_unexpected: Patterns of their names that have no place here and may be left.

    Raises:
        CheckpointError: if a part is unknown here, or a tensor is missing or left over.
        ConfigError: if `overrides` do not fit.
    """
    settings, report = Settings(config), Report()
    theirs = respell_second(respell(TABLE, tensors, report), TABLE)
    pair = find_pair(settings)
    if pair is not None:
        is_tied = bool(settings.get("tie_weights", False))
        if is_tied or are_equal(theirs):
            theirs = join_equal(theirs, is_tied, report)
            settings, pair = pair.first, None
    theirs = _one_relative_table(theirs, report)
    facts = Facts(theirs, tokenizer_size, target_tokenizer_size)
    data = model_data(settings, facts, report, pair)
    report.unread = settings.unread()
    model = decode(ModelConfig, merge(data, overrides or {}), "model")
    heads = [rule for name in model.target for rule in TARGETS.get(name, ())]
    towers = [rule for name in model.towers for rule in tower_rules(TABLE.rules, name)]
    incoming = receive(
        (*TABLE.rules, *towers, *heads),
        ASIDE,
        theirs,
        model,
        tokenizer_size or facts.vocabulary(),
        _numbers(model, settings),
        allow_unexpected,
        report,
        target_vocabulary=target_tokenizer_size or model.target_vocabulary,
    )
    _warn(model, report)
    return incoming


def _numbers(model: ModelConfig, settings: Settings) -> dict[str, int]:
    """Sizes that rules ask for."""
    numbers = {"segment_rows": 1, "text_positions": text_length(settings)}
    towers = [model.embedding, *(tower.embedding for tower in model.towers.values())]
    for number, embedding in enumerate(towers):
        suffix = f"_{number}" if number else ""
        is_concat, has_table = "concat" in embedding.parts, "patch_position" in embedding.parts
        numbers[f"content{suffix}"] = 2 if is_concat else int(has_table)
        numbers[f"has_second_norm{suffix}"] = int(embedding.norm_again)
    patches = model.embedding.patches
    return numbers | {"image_positions": 0 if patches is None else patches.positions}


def _one_relative_table(tensors: LazyTensors, report: Report) -> LazyTensors:
    """With the one table of relative positions that the encoder has used.

    TencentPretrain makes two tables. Its blocks use the one that is saved under every layer; the
    one of UER-py and of all converters is read by nothing there.

    Raises:
        CheckpointError: if layers have different tables.
    """
    used = [name for name in tensors if A_LAYER.fullmatch(name)]
    for other in used[1:]:
        check_equal(tensors, used[0], other, "all layers share one table")
    if not used:
        if ONE_TABLE in tensors.described:
            report.remarks.append(
                f"warning: TencentPretrain itself does not read `{ONE_TABLE}`, the only table of "
                "relative positions in the file, and starts from a random one; UER-py reads it, "
                "and so do we (D1)"
            )
        return tensors
    if ONE_TABLE in tensors.described and not torch.equal(tensors[used[0]], tensors[ONE_TABLE]):
        report.remarks.append(
            f"warning: `{ONE_TABLE}` differs from the table that TencentPretrain has used, which "
            "is taken; if the weights came from a converter, it was trained from a random start "
            "(D1)"
        )
    report.tied += used[1:]
    described = {**tensors.without(used).described, ONE_TABLE: tensors.described[used[0]]}
    return LazyTensors(described, lambda n: tensors[used[0] if n == ONE_TABLE else n])


def _warn(model: ModelConfig, report: Report) -> None:
    """Say where the same file can mean two things."""
    if any("stream_" in name for name in report.aside):
        report.remarks.append(
            "warning: both towers are one model here, but their embeddings go through second norms "
            "that differ; without these, vectors differ from those of TencentPretrain (D23)"
        )
    norm = getattr(model.encoder, "norm", None)
    if norm == "legacy":
        report.remarks.append(
            "the norms are TencentPretrain's own; for weights that a converter made of published "
            "ones, model.encoder.norm=layer and its eps compute what was published (D24)"
        )
    lm = model.target.get("lm")
    is_t5 = getattr(model.encoder, "relative", None) is not None
    if lm is not None and is_t5 and "target.lm.output.weight" in model.ties:
        report.remarks.append(
            "the output layer reads states as they are, as TencentPretrain does; for weights that "
            "a converter made of Google's T5, give model.target.lm.scale_states=true (D43)"
        )
