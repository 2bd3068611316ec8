"""An adapter for lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness).

`python -m tencentpretrain.evaluation.harness` is its command `lm_eval` with one more model, which
is called `tencentpretrain`; docs/evaluation.md shows it.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import torch

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.errors import DataError, UserError, before_start
from tencentpretrain.evaluation.scoring import CausalScorer
from tencentpretrain.generate.decoding import Decoding
from tencentpretrain.generate.frame import find_frame
from tencentpretrain.generate.generator import Generator
from tencentpretrain.registry import load_plugins
from tencentpretrain.tools.saved_model import ToolConfig, load_model

NAME: Final = "tencentpretrain"
GIVEN_DEVICE: Final = "cuda:0"
"""What the harness asks for where the user does not say anything."""
MAX_NEW_TOKENS: Final = 256
"""Where a task does not say how many tokens it wants."""


class HarnessMethods:
    """What the harness asks of a model; `register` joins it with the harness's base class.

    Args:
        checkpoint: run directory or checkpoint of a causal model.
        batch_size: rows computed at once.
        max_batch_size: not used; the harness hands it to every model.
        device: such as cpu or cuda:1; None takes the GPU where there is one.
        precision: auto, fp32 or bf16.
        length: tokens that are read at once; None is the length of training.
        plugins: packages with components of the model, with `+` between them.

    Raises:
        UserError: if the checkpoint cannot be used.
        ConfigError: if a value is wrong.
    """

    def __init__(
        self,
        checkpoint: str,
        batch_size: int | str = 32,
        max_batch_size: int | None = None,
        device: str | None = None,
        precision: str = "auto",
        length: int | None = None,
        plugins: str = "",
    ) -> None:
        super().__init__()
        load_plugins(plugins.split("+") if plugins else [])
        if device == GIVEN_DEVICE and not torch.cuda.is_available():
            device = None
        keys = {"checkpoint": checkpoint, "batch_size": batch_size, "device": device}
        config = decode(ToolConfig, {**keys, "precision": precision})
        with before_start():
            machine = config.machine()
            saved = load_model(config, machine)
            self._scorer = CausalScorer(saved, machine, length)
        self._tokenizer = saved.text_tokenizer()
        self._batch_size = config.batch_size
        frame = find_frame(saved.config, self._tokenizer)
        self._generator = Generator(saved.model, self._tokenizer, frame, dtype=machine.dtype)

    @property
    def eot_token_id(self) -> int:
        """The token behind a text.

        Raises:
            DataError: if the vocabulary has none.
        """
        end = self._tokenizer.eos
        return self._tokenizer.require("sep") if end is None else end

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text of which nothing is given."""
        start = self._tokenizer.bos
        return self.eot_token_id if start is None else start

    def tok_encode(self, string: str, **_: Any) -> list[int]:
        """Ids of a text, without special tokens."""
        return self._tokenizer.encode(string)

    def _loglikelihood_tokens(
        self, requests: Iterable[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether it is the likeliest one.

        Args:
            requests: texts, ids of the context, ids of the continuation.
        """
        parts = [(context or [self.prefix_token_id], rest) for _, context, rest in requests]
        scores = self._scorer.score(
            [[*context, *rest] for context, rest in parts], [len(context) for context, _ in parts]
        )
        return [(score.log_probability, score.is_greedy) for score in scores]

    def loglikelihood_rolling(self, requests: Iterable[Any], **_: Any) -> list[float]:
        """Log-probability of each whole text, read in windows that do not overlap."""
        texts = [request.args[0] for request in requests]
        encoded = self._tokenizer.encode_batch(texts)
        scores = self._scorer.score([[self.prefix_token_id, *ids] for ids in encoded])
        return [score.log_probability for score in scores]

    def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
        """What follows on each context, before a string that is to end it."""
        contexts = [request.args[0] for request in requests]
        groups: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            groups[decoding(request.args[1]).model_dump_json()].append(number)
        texts = [""] * len(contexts)
        for text, numbers in groups.items():
            chosen = Decoding.model_validate_json(text)
            # Texts of like length side by side, so that little is padded.
            numbers.sort(key=lambda number: -len(contexts[number]))
            for first in range(0, len(numbers), self._batch_size):
                part = numbers[first : first + self._batch_size]
                written = self._write([contexts[number] for number in part], chosen)
                for number, behind in zip(part, written, strict=True):
                    texts[number] = behind
        return texts

    def _write(self, contexts: list[str], chosen: Decoding) -> list[str]:
        """What follows on `contexts`, of which the end is read where they are too long."""
        room = max(1, self._scorer.length - chosen.max_new_tokens)
        rows = [row[-room:] for row in self._generator.encode(contexts)]
        return [written.text for written in self._generator.generate_rows(rows, chosen)]


def decoding(options: Mapping[str, Any]) -> Decoding:
    """How text is chosen, from the `generation_kwargs` of a task.

    Raises:
        ConfigError: if they contradict each other.
    """
    until = options.get("until") or []
    temperature = float(options.get("temperature") or 0.0)
    draws = bool(options.get("do_sample", temperature > 0)) and temperature > 0
    keys: dict[str, Any] = {
        "max_new_tokens": int(options.get("max_gen_toks") or MAX_NEW_TOKENS),
        "stop": [until] if isinstance(until, str) else [text for text in until if text],
        "temperature": temperature if draws else 0.0,
    }
    if draws:
        keys |= {name: options.get(name) for name in ("top_k", "top_p")}
    return decode(Decoding, keys)


def register() -> type:
    """Make the model known to the harness under the name `tencentpretrain`.

    Returns:
        The class that the harness will build.

    Raises:
        DataError: if the harness is not installed.
    """
    try:
        from lm_eval.api.model import TemplateLM
        from lm_eval.api.registry import register_model
    except ImportError as error:
        raise DataError(
            "lm-evaluation-harness is not installed; install it with "
            "pip install 'tencentpretrain[eval]'"
        ) from error
    model = type("TencentPretrainLM", (HarnessMethods, TemplateLM), {})
    register_model(NAME)(model)
    return model


def main() -> int:
    """The command `lm_eval`; returns the exit code."""
    try:
        with before_start():
            register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
