"""Keys of a `config.json` and of our model config as data, read in either direction."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from tencentpretrain.config import nearest
from tencentpretrain.errors import CheckpointError

REQUIRED: Final = object()
"""The default of a key that a config.json must have."""
ACTIVATIONS: Final = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python": "gelu",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
"""Their names of activations and ours; where several mean one, the first is written."""
HARMLESS: Final = re.compile(
    r"_.*|architectures|auto_map|model_type|transformers_version|task_specific_params|prefix|"
    r"(torch_)?dtype|torchscript|use_cache|use_bfloat16|gradient_checkpointing|pretraining_tp|"
    r"chunk_size_feed_forward|cross_attention_hidden_size|pruned_heads|tokenizer_class|n_ctx|"
    r"output_.*|return_dict.*|is_encoder_decoder|tie_.*|vocab_size|.*_token_ids?|.*classif.*|"
    r"num_labels|id2label|label2id|problem_type|finetuning_task|summary_.*|qa_dropout|"
    r"sinusoidal_pos_embds|reorder_and_upcast_attn|slow_but_exact|extra_pos_embeddings|"
    r"add_bias_logits|(encoder|decoder)_layerdrop|max_window_layers|n_positions|sparse_pred.*|"
    r"initializer_cutoff_factor|deterministic_flash_attn|reference_compile|repad_logits_with_grad|"
    r"do_sample|force_.*|early_stopping|num_beam.*|.*_ngram_size|.*_penalty|temperature|top_[kp]|typical_p|"
    r"(max|min)_length|num_return_sequences|bad_words_ids|.*suppress_tokens|remove_invalid_values"
)
"""Keys that do not matter for what a model computes, or that the engine reads itself."""


@dataclass(frozen=True)
class Key:
    """A key of ours and the one of theirs that it belongs to.

    Args:
        ours: Dotted path in the plain data of a model; skipped where what it lies in is absent.
        theirs: Key of a config.json.
        default: Their value where the key is left out.
        values: Their values and ours, where these differ.
    """

    ours: str
    theirs: str
    default: Any = REQUIRED
    values: Mapping[Any, Any] = field(default_factory=dict)

    def to_ours(self, value: Any) -> Any:
        """Our value for theirs.

        Raises:
            CheckpointError: if there is none.
        """
        if not self.values or value is None:
            return value
        if value not in self.values:
            raise CheckpointError(
                f"config.json: `{self.theirs}` is `{value}`; {nearest(str(value), self.values)}"
            )
        return self.values[value]

    def to_theirs(self, value: Any) -> Any:
        """Their value for ours; ours itself where there is none, for the caller to refuse."""
        return next((theirs for theirs, ours in self.values.items() if ours == value), value)


class Settings:
    """A config.json that remembers which keys were read.

    Args:
        values: Its content.
        aliases: Other names of keys, and those by which they are asked for.
    """

    def __init__(
        self, values: Mapping[str, Any], aliases: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        renamed = {aliases[name]: value for name, value in values.items() if name in aliases}
        self.values = {**values, **renamed}
        self._read = {name for name in values if name in aliases}

    def get(self, name: str, default: Any = REQUIRED) -> Any:
        """The value of a key.

        Raises:
            CheckpointError: if it is missing and has no default.
        """
        self._read.add(name)
        found = self.values.get(name)
        if found is not None:
            return found
        if default is REQUIRED:
            raise CheckpointError(f"config.json has no `{name}`; {nearest(name, self.values)}")
        return default

    def number(self, name: str, default: Any = REQUIRED) -> int:
        """The value of a key that must be a whole number.

        Raises:
            CheckpointError: if it is missing or something else.
        """
        value = self.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise CheckpointError(f"config.json: `{name}` must be a number, but is {value!r}")
        return value

    def listed(self, name: str, default: Sequence[str]) -> list[str]:
        """Names in a list, or joined by underscores, as in older files of TencentPretrain."""
        value = self.get(name, list(default))
        return [str(item) for item in value] if isinstance(value, list) else str(value).split("_")

    def section(self, name: str) -> Settings:
        """These, with those of the section `name` in their place; what is read is read of both.

        Raises:
            CheckpointError: if there is no such section.
        """
        given = self.get(name)
        if not isinstance(given, Mapping):
            raise CheckpointError(f"config.json: `{name}` must hold keys, but is {given!r}")
        inner = Settings({**self.values, **given})
        inner._read = self._read
        return inner

    def expect(self, expected: Mapping[str, Any]) -> None:
        """Check keys whose other values our parts do not know; left out, they are as expected.

        Raises:
            CheckpointError: naming each key that is something else.
        """
        self._read.update(expected)
        wrong = [
            f"`{name}` must be {value!r}, but is {self.values[name]!r}"
            for name, value in expected.items()
            if self.values.get(name, value) not in (value, None)
        ]
        if wrong:
            raise CheckpointError(f"config.json: {'; '.join(wrong)}: there is no such part here")

    def unread(self) -> list[str]:
        """Keys that nothing has read and that may mean something."""
        return sorted(
            key
            for key, value in self.values.items()
            if key not in self._read
            and value is not None
            and not HARMLESS.fullmatch(key.rpartition(".")[2])
        )


def fill_model(data: dict[str, Any], keys: Sequence[Key], settings: Settings) -> None:
    """Put the values of `settings` into the plain `data` of a model."""
    for key in keys:
        *path, last = key.ours.split(".")
        place = _find(data, path)
        if place is not None:
            place[last] = key.to_ours(settings.get(key.theirs, key.default))


def fill_config(config: dict[str, Any], keys: Sequence[Key], data: Mapping[str, Any]) -> None:
    """Put the plain `data` of a model into a config.json; of two keys of ours the first counts."""
    written: set[str] = set()
    for key in keys:
        *path, last = key.ours.split(".")
        place = _find(data, path)
        if place is None or last not in place:
            if key.default is not REQUIRED:
                config.setdefault(key.theirs, key.default)
        elif key.theirs not in written:
            config[key.theirs] = key.to_theirs(place[last])
            written.add(key.theirs)


def _find(data: Mapping[str, Any], path: Iterable[str]) -> dict[str, Any] | None:
    node: Any = data
    for name in path:
        node = node.get(name) if isinstance(node, Mapping) else None
    return node if isinstance(node, dict) else None
