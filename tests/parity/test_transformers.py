"""With copied weights, `transformers` gives the same states, logits, losses and gradients.

Rows are padded to different lengths, dropout is off, weights are large and random, and everything
is in fp32. The name maps here are deliberately apart from the converters that they also check.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tencentpretrain.model import Model, build_model
from tencentpretrain.types import IGNORE, Batch, Want
from tests.helpers.models import model_config, randomise, text_batch, total_loss

transformers = pytest.importorskip("transformers")

VOCABULARY, HIDDEN, LAYERS, HEADS, FFN, LENGTHS = 99, 32, 3, 4, 64, (11, 5, 8)
SIZES = {"hidden": HIDDEN, "encoder": {"layers": LAYERS, "heads": HEADS, "ffn": FFN}}
COMMON = {"vocab_size": VOCABULARY, "attn_implementation": "eager"}
BERT_LIKE = COMMON | {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": FFN,
}
Rules = Mapping[str, str]
"""From a pattern of our names to the name of a tensor of the reference, with `|` and a slice."""


class Pair(NamedTuple):
    """Our model beside the reference, with the same weights."""

    ours: Model
    theirs: nn.Module
    rules: Rules
    batch: Batch
    arguments: dict[str, Tensor]


def find(rules: Rules, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """The part of the reference's `tensors` that corresponds to our parameter `name`."""
    for pattern, template in rules.items():
        match = re.fullmatch(pattern, name)
        if match:
            source, _, edit = match.expand(template).partition("|")
            found = tensors[source]
            if edit == "rows2":
                return found[2:]
            if edit == "t":
                return found.t()
            if edit:
                part = int(edit) * HIDDEN
                return found[..., part : part + HIDDEN].t()
            return found
    raise AssertionError(f"no rule for {name}")


def bert_rules(prefix: str, embeddings: str = "embeddings") -> dict[str, str]:
    block, layer = r"encoder\.layers\.(\d+)\.", rf"{prefix}.encoder.layer.\1."
    names = {
        "attention.query": "attention.self.query",
        "attention.key": "attention.self.key",
        "attention.value": "attention.self.value",
        "attention.output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "feed_forward.up": "intermediate.dense",
        "feed_forward.down": "output.dense",
        "feed_forward_norm": "output.LayerNorm",
    }
    rules = {
        rf"{block}{re.escape(ours)}\.(weight|bias)": f"{layer}{theirs}.\\2"
        for ours, theirs in names.items()
    }
    return rules | embedding_rules(f"{prefix}.{embeddings}")


def embedding_rules(prefix: str) -> dict[str, str]:
    return {
        r"embedding\.word\.weight": f"{prefix}.word_embeddings.weight",
        r"embedding\.position\.weight": f"{prefix}.position_embeddings.weight",
        r"embedding\.segment\.weight": f"{prefix}.token_type_embeddings.weight",
        r"embedding\.norm\.(weight|bias)": rf"{prefix}.LayerNorm.\1",
    }


def pair_of(name: str, theirs: nn.Module, rules: Rules, targets: tuple[str, ...]) -> Pair:
    overrides: dict[str, Any] = SIZES | {"objective": {"length": 16}}
    overrides |= {"embedding": {"parts": {"position": {"length": 16}}}}
    if "albert" in name:
        overrides["embedding"] |= {"size": 16}
    ours = build_model(model_config(name, overrides), VOCABULARY).eval()
    randomise(theirs)
    theirs.eval()
    tensors = dict(theirs.state_dict())
    with torch.no_grad():
        for parameter, values in ours.named_parameters():
            values.copy_(find(rules, tensors, parameter))
    batch = text_batch(LENGTHS, targets, vocabulary=VOCABULARY)
    stream = batch.streams["src"]
    arguments = {
        "input_ids": stream.inputs["ids"],
        "attention_mask": stream.layout.valid.long(),
        "labels": grid_labels(batch, targets[0]),
    }
    return Pair(ours, theirs, rules, batch, arguments)


def grid_labels(batch: Batch, target: str) -> Tensor:
    """Labels [B, S] as the reference wants them; it shifts those of language models itself."""
    ids, labels = batch.streams["src"].inputs["ids"], batch.labels[target]
    assert labels.index is not None
    shift = 1 if target == "lm" else 0
    grid = torch.full_like(ids, IGNORE)
    grid.view(-1)[labels.index + shift] = labels.values
    return grid


def bert() -> Pair:
    config = transformers.BertConfig(**BERT_LIKE, max_position_embeddings=16)
    rules = bert_rules("bert") | {
        r"target\.mlm\.dense\.(.*)": r"cls.predictions.transform.dense.\1",
        r"target\.mlm\.norm\.(.*)": r"cls.predictions.transform.LayerNorm.\1",
        r"target\.mlm\.output\.bias": "cls.predictions.bias",
        r"target\.nsp\.dense\.(.*)": r"bert.pooler.dense.\1",
        r"target\.nsp\.output\.(.*)": r"cls.seq_relationship.\1",
    }
    pair = pair_of("bert/tiny", transformers.BertForPreTraining(config), rules, ("mlm", "nsp"))
    pair.arguments["token_type_ids"] = pair.batch.streams["src"].inputs["segments"]
    pair.arguments["next_sentence_label"] = pair.batch.labels["nsp"].values
    return pair


def roberta() -> Pair:
    config = transformers.RobertaConfig(
        **BERT_LIKE,
        max_position_embeddings=18,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
    )
    theirs = transformers.RobertaForMaskedLM(config)
    rules = bert_rules("roberta") | {
        r"embedding\.position\.weight": "roberta.embeddings.position_embeddings.weight|rows2",
        r"target\.mlm\.dense\.(.*)": r"lm_head.dense.\1",
        r"target\.mlm\.norm\.(.*)": r"lm_head.layer_norm.\1",
        r"target\.mlm\.output\.bias": "lm_head.bias",
    }
    pair = pair_of("roberta/tiny", theirs, rules, ("mlm",))
    # Its only segment is a constant; ours has it in the positions, if anywhere.
    nn.init.zeros_(theirs.roberta.embeddings.token_type_embeddings.weight)
    padded = ~pair.batch.streams["src"].layout.valid
    pair.arguments["input_ids"] = pair.arguments["input_ids"].masked_fill(padded, 1)
    return pair


def albert() -> Pair:
    config = transformers.AlbertConfig(
        **BERT_LIKE,
        embedding_size=16,
        max_position_embeddings=16,
        hidden_act="gelu_new",
        num_hidden_groups=1,
    )
    layer = "albert.encoder.albert_layer_groups.0.albert_layers.0."
    block = r"encoder\.layers\.0\."
    rules = embedding_rules("albert.embeddings") | {
        r"embedding\.projection\.(.*)": r"albert.encoder.embedding_hidden_mapping_in.\1",
        block + r"attention\.(query|key|value)\.(.*)": layer + r"attention.\1.\2",
        block + r"attention\.output\.(.*)": layer + r"attention.dense.\1",
        block + r"attention_norm\.(.*)": layer + r"attention.LayerNorm.\1",
        block + r"feed_forward\.up\.(.*)": layer + r"ffn.\1",
        block + r"feed_forward\.down\.(.*)": layer + r"ffn_output.\1",
        block + r"feed_forward_norm\.(.*)": layer + r"full_layer_layer_norm.\1",
        r"target\.mlm\.(dense)\.(.*)": r"predictions.\1.\2",
        r"target\.mlm\.norm\.(.*)": r"predictions.LayerNorm.\1",
        r"target\.mlm\.output\.bias": "predictions.bias",
        r"target\.sop\.dense\.(.*)": r"albert.pooler.\1",
        r"target\.sop\.output\.(.*)": r"sop_classifier.classifier.\1",
    }
    theirs = transformers.AlbertForPreTraining(config)
    pair = pair_of("albert/base", theirs, rules, ("mlm", "sop"))
    pair.arguments["token_type_ids"] = pair.batch.streams["src"].inputs["segments"]
    pair.arguments["sentence_order_label"] = pair.batch.labels["sop"].values
    return pair


def gpt2() -> Pair:
    config = transformers.GPT2Config(
        **COMMON, n_positions=16, n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_inner=FFN
    )
    block, layer = r"encoder\.layers\.(\d+)\.", r"transformer.h.\1."
    rules = {
        r"embedding\.word\.weight": "transformer.wte.weight",
        r"embedding\.position\.weight": "transformer.wpe.weight",
        block + r"attention_norm\.(.*)": layer + r"ln_1.\2",
        block + r"feed_forward_norm\.(.*)": layer + r"ln_2.\2",
        block + r"attention\.output\.weight": layer + "attn.c_proj.weight|t",
        block + r"attention\.output\.bias": layer + "attn.c_proj.bias",
        block + r"feed_forward\.up\.weight": layer + "mlp.c_fc.weight|t",
        block + r"feed_forward\.up\.bias": layer + "mlp.c_fc.bias",
        block + r"feed_forward\.down\.weight": layer + "mlp.c_proj.weight|t",
        block + r"feed_forward\.down\.bias": layer + "mlp.c_proj.bias",
        r"encoder\.norm\.(.*)": r"transformer.ln_f.\1",
    }
    for part, kind in enumerate(("query", "key", "value")):
        for tensor in ("weight", "bias"):
            ours = block + rf"attention\.{kind}\.{tensor}"
            rules[ours] = layer + f"attn.c_attn.{tensor}|{part}"
    return pair_of("gpt2/tiny", transformers.GPT2LMHeadModel(config), rules, ("lm",))


FAMILIES: dict[str, Callable[[], Pair]] = {
    "bert": bert,
    "roberta": roberta,
    "albert": albert,
    "gpt2": gpt2,
}


@pytest.fixture(params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> Pair:
    return FAMILIES[request.param]()


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_states_of_every_layer_are_those_of_transformers(pair: Pair) -> None:
    embedded = pair.ours.embedding(pair.batch.streams["src"])
    hidden = pair.ours.encoder(embedded.states, embedded.layout, Want(tuple(range(LAYERS + 1))))
    theirs = pair.theirs(**pair.arguments, output_hidden_states=True).hidden_states
    valid = hidden.layout.valid
    assert len(hidden.layers) == len(theirs) == LAYERS + 1
    for ours, reference in zip(
        (*hidden.layers[:-1], hidden.states), (*theirs[:-1], theirs[-1]), strict=True
    ):
        close(ours[valid], reference[valid])


def test_logits_are_those_of_transformers(pair: Pair) -> None:
    out = pair.ours.encode(pair.batch)
    theirs = pair.theirs(**pair.arguments)
    for name, labels in pair.batch.labels.items():
        logits = pair.ours.target[name].logits(out, pair.batch)
        if labels.index is None:
            key = "sop_logits" if name == "sop" else "seq_relationship_logits"
            close(logits, theirs[key])
        else:
            grid = theirs["prediction_logits" if "prediction_logits" in theirs else "logits"]
            close(logits, grid.flatten(0, 1)[labels.index])


def test_loss_and_gradients_are_those_of_transformers(pair: Pair) -> None:
    loss = total_loss(pair.ours(pair.batch))
    reference = pair.theirs(**pair.arguments).loss
    close(loss, reference)
    loss.backward()
    reference.backward()
    gradients = {
        name: parameter.grad
        for name, parameter in pair.theirs.named_parameters(remove_duplicate=False)
        if parameter.grad is not None
    }
    checked = 0
    for name, parameter in pair.ours.named_parameters():
        assert parameter.grad is not None, name
        close(parameter.grad, find(pair.rules, gradients, name))
        assert parameter.grad.abs().max() > 1e-3 or name.endswith("key.bias"), name
        checked += 1
    assert checked == len(list(pair.ours.parameters()))
