"""Models that are timed: ours, the same of `transformers`, and our batches as it wants them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from tencentpretrain.types import Batch

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One model to time.

    Args:
        words: Overrides of the command line that choose it.
        batch_size: Rows of a step.
        reference: From the size of the vocabulary to the model of `transformers`.
        rows: From a batch of ours to rows for its Trainer.
        sentinels: Entries to add to the vocabulary.
        unit: What a batch counts: tokens of texts, or images.
    """

    words: tuple[str, ...]
    batch_size: int
    reference: Callable[[int], nn.Module]
    rows: Callable[[Batch], Rows]
    sentinels: int = 0
    unit: str = "tokens"


def split(columns: dict[str, Tensor], length: int) -> Rows:
    """The rows of a grid, padded to `length`; labels with -100."""
    rows: Rows = [{} for _ in next(iter(columns.values()))]
    for name, column in columns.items():
        fill = -100 if name == "labels" else 0
        padded = F.pad(column, (0, length - column.shape[1]), value=fill)
        for row, values in zip(rows, padded, strict=True):
            row[name] = values
    return rows


def grid_labels(batch: Batch, target: str, stream: str = "src") -> Tensor:
    """Labels of `target` on the grid of `stream`."""
    shape, labels = batch.streams[stream].inputs["ids"].shape, batch.labels[target]
    if labels.index is None:
        return labels.values
    grid = torch.full(shape, -100)
    grid.view(-1)[labels.index] = labels.values
    return grid


def bert_rows(batch: Batch) -> Rows:
    stream = batch.streams["src"]
    columns = {
        "input_ids": stream.inputs["ids"],
        "token_type_ids": stream.inputs["segments"],
        "attention_mask": stream.layout.valid.long(),
        "labels": grid_labels(batch, "mlm"),
    }
    pairs = zip(split(columns, 128), batch.labels["nsp"].values, strict=True)
    return [{**row, "next_sentence_label": label} for row, label in pairs]


def gpt2_rows(batch: Batch) -> Rows:
    ids, labels = batch.streams["src"].inputs["ids"], grid_labels(batch, "lm")
    # It shifts labels itself, and so never sees the one behind the last position.
    shifted = torch.cat([torch.full_like(labels[:, :1], -100), labels[:, :-1]], 1)
    return split({"input_ids": ids, "labels": shifted}, 256)


def t5_rows(batch: Batch) -> Rows:
    source, target = batch.streams["src"], batch.streams["tgt"]
    rows = split(
        {"input_ids": source.inputs["ids"], "attention_mask": source.layout.valid.long()}, 128
    )
    decoded = {
        "decoder_input_ids": target.inputs["ids"],
        "decoder_attention_mask": target.layout.valid.long(),
        "labels": grid_labels(batch, "lm", "tgt"),
    }
    return [a | b for a, b in zip(rows, split(decoded, 48), strict=True)]


def vit_rows(batch: Batch) -> Rows:
    pairs = zip(batch.streams["src"].inputs["pixels"], batch.labels["classify"].values, strict=True)
    return [{"pixel_values": pixels, "labels": label} for pixels, label in pairs]


def bert(vocabulary: int) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
    )
    return transformers.BertForPreTraining(config)


def gpt2(vocabulary: int) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=vocabulary, n_positions=256, n_embd=256, n_layer=4, n_head=4
    )
    return transformers.GPT2LMHeadModel(config)


def t5(vocabulary: int) -> nn.Module:
    config = transformers.T5Config(
        vocab_size=vocabulary, d_model=256, d_kv=64, d_ff=1024, num_layers=4, num_heads=4
    )
    return transformers.T5ForConditionalGeneration(config)


def vit(vocabulary: int) -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        intermediate_size=1536,
        hidden_dropout_prob=0.1,
    )
    config.num_labels = 10
    return transformers.ViTForImageClassification(config)


SIZE = ("model.hidden=256", "model.encoder.layers=4", "model.encoder.heads=4")
CASES = {
    "bert": Case(("model=bert/mini", "model.objective.length=128"), 32, bert, bert_rows),
    "gpt2": Case(
        (
            "model=gpt2/mini",
            *SIZE,
            "model.encoder.ffn=1024",
            "model.objective.length=256",
            "model.objective.isolate_documents=false",
        ),
        8,
        gpt2,
        gpt2_rows,
    ),
    "t5": Case(
        (
            "model=t5/small",
            *SIZE,
            "model.encoder.ffn=1024",
            "model.decoder.layers=4",
            "model.decoder.heads=4",
            "model.decoder.ffn=1024",
            "model.objective.length=128",
            "model.objective.target_length=48",
            "model.objective.pack=true",
        ),
        32,
        t5,
        t5_rows,
        sentinels=100,
    ),
    "vit": Case(
        (
            "model=vit/small",
            "model.target.classify.dense=false",
            "model.target.classify.classes=10",
        ),
        8,
        vit,
        vit_rows,
        unit="images",
    ),
}
