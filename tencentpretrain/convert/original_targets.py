"""Targets of TencentPretrain and UER-py as targets of ours, and what their weights are tied to."""

from __future__ import annotations

from typing import Final

from tencentpretrain.config import nearest
from tencentpretrain.convert.family import Plain
from tencentpretrain.convert.keys import Settings
from tencentpretrain.convert.original_facts import EPS, Facts
from tencentpretrain.convert.original_image_text import BOTH, WORDS, writes_codes
from tencentpretrain.convert.report import Report
from tencentpretrain.errors import CheckpointError

ACTIVATIONS: Final = {"gelu": "gelu", "gelu_fast": "gelu_tanh", "relu": "relu", "silu": "silu"}
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
    "clr": "target.clr.logit_scale",
}
"""Tensors that show that a file has a target."""
SPAN_ENDS: Final = 2
"""Rows of the output layer for spans: the start and the end."""


def targets(settings: Settings, facts: Facts, report: Report) -> Plain:
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
    reads_both = BOTH in settings.listed("embedding", [])
    for name in names:
        if name not in MARKS:
            raise CheckpointError(
                f"the target `{name}` cannot be converted; {nearest(name, MARKS)}"
            )
        if MARKS[name] not in present and name not in ("lm", "bilm"):
            report.remarks.append(f"the file has no tensors of the target `{name}`")
            continue
        if name == "sp" and reads_both:
            found["match"] = {"name": "classify", "classes": 2, "pooling": "first"}
        elif name == "clr":
            found["contrast"] = {}
        else:
            found |= _target(name, settings, facts, is_albert)
    if "lm" in found and writes_codes(settings):
        # One output layer there; here captions and codes are weighed apart.
        lm = {"name": "lm", **found.pop("lm")}
        return {"text": lm, "image": dict(lm), **found}
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


def add_ties(data: Plain, settings: Settings) -> None:
    is_tied = bool(settings.get("tie_weights", False))
    is_shared = "decoder" in data and bool(settings.get("share_embedding", False))
    word = "embedding.word.weight"
    if "concat" in data["embedding"]["parts"]:
        word = WORDS
    if is_shared:
        data["ties"]["target_embedding.word.weight"] = word
    if is_tied and "mlm" in data["target"]:
        data["ties"]["target.mlm.output.weight"] = word
    if is_tied and "lm" in data["target"]:
        written = "decoder" in data and not is_shared
        data["ties"]["target.lm.output.weight"] = f"target_{word}" if written else word
    if "image" in data["target"]:
        data["ties"]["target.image.output.weight"] = "target.text.output.weight"
        if data["target"]["text"]["bias"]:
            data["ties"]["target.image.output.bias"] = "target.text.output.bias"
        if is_tied:
            data["ties"]["target.text.output.weight"] = word
