"""Tiny random models of `transformers`, and ours with their weights."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tencentpretrain.convert.families import family_of
from tencentpretrain.convert.family import Family
from tencentpretrain.convert.huggingface import import_model, numbers_of
from tencentpretrain.convert.incoming import Incoming, respell
from tencentpretrain.convert.keys import Settings
from tencentpretrain.convert.report import Report
from tencentpretrain.convert.table import convert
from tencentpretrain.convert.weights import open_weights, read_json
from tencentpretrain.model import Model, build_model
from tencentpretrain.train.load import load_weights
from tencentpretrain.train.tensor_file import LazyTensors
from tencentpretrain.types import IGNORE, TGT, Batch, Labels, Stream
from tests.helpers.models import layout_of, randomise, text_batch

VOCABULARY, HIDDEN, LAYERS, HEADS, FFN, LENGTHS = 99, 32, 3, 4, 64, (11, 5, 8)
EAGER = {"vocab_size": VOCABULARY, "attn_implementation": "eager"}
SIZES = EAGER | {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": FFN,
}
BERT = SIZES | {"max_position_embeddings": 16}
ROBERTA = SIZES | {"max_position_embeddings": 18, "layer_norm_eps": 1e-5, "pad_token_id": 1}
ALBERT = BERT | {"embedding_size": 16, "hidden_act": "gelu_new"}
DISTILBERT = EAGER | {
    "dim": HIDDEN,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "hidden_dim": FFN,
    "max_position_embeddings": 16,
}
GPT2 = EAGER | {
    "n_positions": 16,
    "n_embd": HIDDEN,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_inner": FFN,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MODERNBERT = SIZES | {
    **{f"{role}_token_id": 0 for role in ("pad", "bos", "eos", "cls", "sep")},
    "local_attention": 4,
    "global_attn_every_n_layers": 3,
}
T5 = EAGER | {
    "d_model": HIDDEN,
    "d_kv": 6,
    "d_ff": FFN,
    "num_layers": LAYERS,
    "num_decoder_layers": 2,
    "num_heads": HEADS,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10,
}
BART = EAGER | {
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "decoder_layers": 2,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": FFN,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 16,
}
S2T = EAGER | {
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "decoder_layers": 2,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": FFN,
    "decoder_ffn_dim": 48,
    "conv_channels": 12,
    "conv_kernel_sizes": (5, 3),
    "input_feat_per_channel": 10,
}
WHISPER = {key: value for key, value in S2T.items() if "conv" not in key and "input" not in key} | {
    "num_mel_bins": 10,
    "max_source_positions": 11,
    "max_target_positions": 16,
    **{f"{role}_token_id": 1 for role in ("pad", "bos", "eos", "decoder_start")},
    "begin_suppress_tokens": None,
}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertForPreTraining", "BertConfig", BERT),
    "bert mlm": ("BertForMaskedLM", "BertConfig", BERT | {"hidden_act": "relu"}),
    "bert untied": ("BertForMaskedLM", "BertConfig", BERT | {"tie_word_embeddings": False}),
    "bert encoder": ("BertModel", "BertConfig", BERT),
    "bert classify": ("BertForSequenceClassification", "BertConfig", BERT | {"num_labels": 3}),
    "bert tag": ("BertForTokenClassification", "BertConfig", BERT | {"num_labels": 5}),
    "bert span": ("BertForQuestionAnswering", "BertConfig", BERT),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", ROBERTA | {"type_vocab_size": 1}),
    "roberta classify": ("RobertaForSequenceClassification", "RobertaConfig", ROBERTA),
    "roberta tag": ("RobertaForTokenClassification", "RobertaConfig", ROBERTA),
    "roberta span": ("RobertaForQuestionAnswering", "RobertaConfig", ROBERTA),
    "xlm_r": ("XLMRobertaForMaskedLM", "XLMRobertaConfig", ROBERTA | {"type_vocab_size": 1}),
    "xlm_r span": (
        "XLMRobertaForQuestionAnswering",
        "XLMRobertaConfig",
        ROBERTA | {"type_vocab_size": 1},
    ),
    "albert": ("AlbertForPreTraining", "AlbertConfig", ALBERT),
    "albert classify": ("AlbertForSequenceClassification", "AlbertConfig", ALBERT),
    "albert span": ("AlbertForQuestionAnswering", "AlbertConfig", ALBERT),
    "distilbert": ("DistilBertForMaskedLM", "DistilBertConfig", DISTILBERT),
    "distilbert tag": ("DistilBertForTokenClassification", "DistilBertConfig", DISTILBERT),
    "distilbert span": (
        "DistilBertForQuestionAnswering",
        "DistilBertConfig",
        DISTILBERT | {"qa_dropout": 0.2},
    ),
    "modernbert": ("ModernBertForMaskedLM", "ModernBertConfig", MODERNBERT),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "bloom": (
        "BloomForCausalLM",
        "BloomConfig",
        EAGER | {"hidden_size": 36, "n_layer": LAYERS, "n_head": 6},
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED | {"rope_parameters": LLAMA3}),
    "llama linear": (
        "LlamaForCausalLM",
        "LlamaConfig",
        SIZES
        | {
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
        },
    ),
    "llama dynamic": (
        "LlamaForCausalLM",
        "LlamaConfig",
        GROUPED
        | {
            "max_position_embeddings": 6,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e3, "factor": 2.0},
        },
    ),
    "mistral": ("MistralForCausalLM", "MistralConfig", GROUPED | {"sliding_window": 4}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GROUPED),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", GROUPED | {"head_dim": 12}),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5),
    "t5_v1_1": (
        "T5ForConditionalGeneration",
        "T5Config",
        T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "bart": ("BartForConditionalGeneration", "BartConfig", BART),
    "pegasus": (
        "PegasusForConditionalGeneration",
        "PegasusConfig",
        BART | {"scale_embedding": True, "activation_function": "relu"},
    ),
    "s2t": ("Speech2TextForConditionalGeneration", "Speech2TextConfig", S2T),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", WHISPER),
}
"""Class, class of the config, and its keys, by the name of a case."""
LABELLED = ("classify", "tag", "span")
"""Targets with labels of their own."""
SPEECH = ("speech_to_text", "whisper")
"""Types of models that read frames."""


@dataclass
class Pair:
    """Our model beside the reference, with the same weights.

    Args:
        family: What the reference is.
        config: Content of its config.json.
        theirs: The reference.
        incoming: What was made of it.
        ours: Built of that.
        batch: For ours.
        arguments: The same for the reference, with labels.
    """

    family: Family
    config: dict[str, Any]
    theirs: Any
    incoming: Incoming
    ours: Model
    batch: Batch
    arguments: dict[str, Tensor]

    @property
    def shifts(self) -> set[str]:
        """Parameters that raise the scores of all positions alike, so that no span changes."""
        last = f"encoder.layers.{LAYERS - 1}.feed_forward_norm.bias"
        return {"target.span.output.bias", last} if "span" in self.ours.target.weights else set()

    def our_gradients(self) -> LazyTensors:
        """The reference's gradients under our names."""
        gradients = {
            name: parameter.grad
            for name, parameter in self.theirs.named_parameters(remove_duplicate=False)
            if parameter.grad is not None
        }
        numbers = numbers_of(
            self.family, Settings(self.config, self.family.aliases), self.incoming.model
        )
        spelled = respell(self.family.table, LazyTensors.of(gradients), Report())
        return convert(
            self.family.rules(self.incoming.model.target), "ours", spelled, numbers
        ).tensors


def reference(case: str) -> Any:
    """A model of `transformers` with large random weights and no dropout."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    name, config, keys = MODELS[case]
    model = getattr(transformers, name)(getattr(transformers, config)(**keys))
    untie(model, keys)
    fixed = [(p, p.clone()) for p in model.parameters() if not p.requires_grad]
    randomise(model)
    for parameter, values in fixed:
        parameter.copy_(values)
    with torch.no_grad():
        for module in model.modules():
            # What padding looks up: zero in all published models, and never trained.
            if isinstance(module, nn.Embedding) and module.padding_idx and len(module.weight) == 18:
                module.weight[module.padding_idx].zero_()
        if case == "bert untied":
            model.cls.predictions.bias.copy_(model.cls.predictions.decoder.bias)
    return model.eval()


def untie(model: Any, keys: dict[str, Any]) -> None:
    """Version 5 always ties T5, although the published models of v1.1 are not tied."""
    if model.config.model_type == "t5" and keys.get("tie_word_embeddings") is False:
        model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
        model.config.tie_word_embeddings = False


def save(model: Any, folder: Path) -> dict[str, Any]:
    """Write a model as `transformers` does; returns its config.json."""
    model.save_pretrained(folder)
    return read_json(folder / "config.json")


def pair(case: str) -> Pair:
    """A reference and our model with its weights."""
    theirs = reference(case)
    with tempfile.TemporaryDirectory() as folder:
        config = save(theirs, Path(folder))
        incoming = import_model(family_of(config["model_type"]), config, open_weights(Path(folder)))
        ours = build_model(incoming.model, VOCABULARY).eval()
        load_weights(ours, incoming.tensors)
    batch, arguments = inputs(ours, config)
    return Pair(family_of(config["model_type"]), config, theirs, incoming, ours, batch, arguments)


def inputs(ours: Model, config: dict[str, Any]) -> tuple[Batch, dict[str, Tensor]]:
    """One batch with padding, for both."""
    if config["model_type"] in SPEECH:
        return speech_inputs(config["model_type"])
    if ours.decoder is not None:
        return seq2seq_inputs()
    names = {"nsp": "next_sentence_label", "sop": "sentence_order_label"}
    is_span = "span" in ours.target.weights
    batch = text_batch(
        # Theirs lets answers lie in padding, whose states are not defined.
        (max(LENGTHS),) * len(LENGTHS) if is_span else LENGTHS,
        [name for name in ours.target.weights if name not in LABELLED],
        vocabulary=VOCABULARY,
    )
    stream = batch.streams["src"]
    for name in ours.target.weights:
        if name in LABELLED:
            batch.labels[name] = class_labels(name, batch)
    padding = config.get("pad_token_id") or 0
    ids = stream.inputs["ids"].masked_fill(~stream.layout.valid, padding)
    arguments = {"input_ids": ids, "attention_mask": stream.layout.valid.long()}
    if config.get("type_vocab_size", 1) > 1:
        arguments["token_type_ids"] = stream.inputs["segments"]
    else:
        del stream.inputs["segments"]
    for target, labels in batch.labels.items():
        if target == "span":
            starts, ends = labels.values.unbind(1)
            return batch, arguments | {"start_positions": starts, "end_positions": ends}
        grid = labels.values if labels.index is None else grid_labels(batch, target, "src")
        arguments[names.get(target, "labels")] = grid
    return batch, arguments


def class_labels(target: str, batch: Batch) -> Labels:
    """The first two classes in turn, for rows or for every third token; or spans of each row."""
    if target == "span":
        return Labels(torch.tensor([[3, 5], [0, 0], [7, 10]]))
    if target == "classify":
        return Labels(torch.arange(len(LENGTHS)) % 2)
    index = batch.streams["src"].layout.valid.flatten().nonzero().squeeze(1)[::3]
    return Labels(torch.arange(len(index)) % 2, index)


def seq2seq_inputs() -> tuple[Batch, dict[str, Tensor]]:
    """Sources and targets of different lengths; every target position is supervised."""
    streams: dict[str, Stream] = {}
    generator = torch.Generator().manual_seed(0)
    for name, lengths in (("src", LENGTHS), (TGT, (6, 9, 3))):
        layout = layout_of(lengths)
        ids = torch.randint(3, VOCABULARY, layout.valid.shape, generator=generator)
        streams[name] = Stream({"ids": ids * layout.valid}, layout)
    index = streams[TGT].layout.valid.flatten().nonzero().squeeze(1)
    values = torch.randint(3, VOCABULARY, index.shape, generator=generator)
    batch = Batch(streams, {"lm": Labels(values, index)})
    return batch, {
        "input_ids": streams["src"].inputs["ids"],
        "attention_mask": streams["src"].layout.valid.long(),
        "decoder_input_ids": streams[TGT].inputs["ids"],
        "decoder_attention_mask": streams[TGT].layout.valid.long(),
        "labels": grid_labels(batch, "lm", TGT),
    }


def speech_inputs(model_type: str) -> tuple[Batch, dict[str, Tensor]]:
    """Frames of one length, since S2T there lets the end of a row depend on padding."""
    batch, arguments = seq2seq_inputs()
    layout = layout_of([22] * len(LENGTHS))
    frames = torch.randn(*layout.valid.shape, 10, generator=torch.Generator().manual_seed(1))
    batch.streams["src"] = Stream({"frames": frames}, layout)
    del arguments["input_ids"], arguments["attention_mask"]
    is_turned = model_type == "whisper"
    return batch, {"input_features": frames.mT if is_turned else frames, **arguments}


def grid_labels(batch: Batch, target: str, stream: str) -> Tensor:
    """Labels [B, S] as the reference wants them; it shifts those of causal models itself."""
    labels = batch.labels[target]
    assert labels.index is not None
    shift = 1 if target == "lm" and stream == "src" else 0
    grid = torch.full_like(batch.streams[stream].inputs["ids"], IGNORE)
    grid.view(-1)[labels.index + shift] = labels.values
    return grid
