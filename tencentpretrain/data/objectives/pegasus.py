"""Gap-sentence generation (Zhang et al., 2020, PEGASUS, section 3.1)."""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from tencentpretrain.config import check
from tencentpretrain.data.masking import Fraction, Share, count_masked
from tencentpretrain.data.objectives.base import OBJECTIVES, Example
from tencentpretrain.data.objectives.denoise import DenoiseObjective, Edge, SentenceRows
from tencentpretrain.data.objectives.pairs import cut_units
from tencentpretrain.data.objectives.seq2seq import Seq2SeqConfig
from tencentpretrain.data.order import generator
from tencentpretrain.data.packing import Integers
from tencentpretrain.data.spans import replace_spans, span_tokens
from tencentpretrain.errors import DataError

USUAL: Final = "<mask_1>"
"""How published vocabularies write the mask of a sentence, beside one for tokens."""


@OBJECTIVES.register("pegasus")
class PegasusObjective(DenoiseObjective):
    """Some sentences of the source become a mask each; the target has those, in their order.

    Rows are whole sentences of one document, as many as fit, the same in each epoch; "document"
    and its beginning here mean what a row holds of it. Each token is read once an epoch: no
    sentence is left out, and only those longer than a row, or than a target, are cut into several.
    A row of one sentence is cut at a random place into two, which count as sentences; of a row of
    one token the source is a mask. So neither source nor target is ever empty.
    """

    class Config(Seq2SeqConfig):
        gap_rate: Fraction = 0.3
        """Part of the sentences of a row that is hidden and to be written."""
        select: Literal["rouge", "lead", "random"] = "rouge"
        """Which: those most like the rest (rouge), the first ones (lead), or any (random)."""
        score_noise: Share = 0.0
        """Scores are changed at random by up to this part of them (rouge; 0.2 in PEGASUS large)."""
        mask_token: str | None = None
        """Token in the place of a sentence; null is <mask_1>, or the mask where that is missing."""
        start: Edge = "pad"
        """Special token that the decoder starts from."""

        @check("target_length")
        def _target_holds_a_token(self) -> str | None:
            return None if self.target_length > 1 else "target_length must be at least 2, for [eos]"

    config: Config

    def _prepare(self) -> None:
        self._eos, self._start = self.edge("eos"), self.edge(self.config.start)
        self._mask = self._find_mask()
        self._rows = SentenceRows(self.shards, self.documents, self.config.length - 1, self.seed)

    def _find_mask(self) -> int:
        told = self.config.mask_token
        found = self.tokenizer.id(told or USUAL)
        if found is None and told is not None:
            raise DataError(
                f"`{told}` of model.objective.mask_token is not in the vocabulary; correct it or "
                "leave it out"
            )
        return self.special("mask") if found is None else found

    def __len__(self) -> int:
        return len(self._rows)

    def make(self, epoch: int, index: int) -> Example:
        text, ends = self._rows.read(index)
        random = generator(self.seed, epoch, index)
        ends = self._sentences(ends, random)
        lengths = np.diff(ends, prepend=0)
        chosen = self._choose(text, ends, lengths, random)
        starts, lengths = (ends - lengths)[chosen], lengths[chosen]
        source = replace_spans(text, starts, lengths, self._mask)
        target = text[span_tokens(starts, lengths)].astype(np.int64)
        return self.pair(np.append(source, self._eos), np.append(target, self._eos), self._start)

    def _sentences(self, ends: Integers, random: Generator) -> Integers:
        """Ends of at least two sentences, where there are two tokens, that each fit a target."""
        room, size = self.config.target_length - 1, int(ends[-1])
        if np.diff(ends, prepend=0).max() > room:
            ends, _ = cut_units(ends, ends[-1:], np.ones(1, np.bool_), room)
        if len(ends) > 1 or size == 1:
            return ends
        return np.array([random.integers(1, size), size])

    def _choose(
        self, text: NDArray[Any], ends: Integers, lengths: Integers, random: Generator
    ) -> Integers:
        """Numbers of the sentences that are hidden, ascending; as many as there is room for."""
        count = min(count_masked(len(ends), self.config.gap_rate), max(len(ends) - 1, 1))
        order = self._preference(text, ends, lengths, random)
        room = self.config.target_length - 1
        if lengths[order[:count]].sum() > room:
            # The best that fits, then the best that still does, and so on.
            fitting: list[int] = []
            for number in order.tolist():
                if lengths[number] <= room and len(fitting) < count:
                    fitting.append(number)
                    room -= int(lengths[number])
            order = np.array(fitting)
        return np.sort(order[:count])

    def _preference(
        self, text: NDArray[Any], ends: Integers, lengths: Integers, random: Generator
    ) -> Integers:
        """Numbers of all sentences, the first to be hidden first."""
        if self.config.select == "lead":
            return np.arange(len(ends))
        if self.config.select == "random":
            return random.permutation(len(ends))
        scores = rouge(text, lengths)
        if self.config.score_noise:
            scores = scores * (1 + self.config.score_noise * random.uniform(-1, 1, len(scores)))
        return (-scores).argsort(kind="stable")


def rouge(text: NDArray[Any], lengths: Integers) -> NDArray[np.float64]:
    """ROUGE-1 F1 of each sentence against all others together, on token ids ("Ind-Orig").

    Tokens count as often as they occur (Lin, 2004, ROUGE, section 2). With o tokens in common,
    precision is o / |sentence| and recall o / |others|; so F1 is 2 o / |text| for each sentence.

    Args:
        text: [N] ids of all sentences.
        lengths: [S] their lengths.
    """
    words, word = np.unique(text, return_inverse=True)
    owner = np.arange(len(lengths)).repeat(lengths)
    keys, counts = np.unique(owner * len(words) + word, return_counts=True)
    sentence, kind = np.divmod(keys, len(words))
    shared = np.minimum(counts, np.bincount(word)[kind] - counts)
    return 2 * np.bincount(sentence, shared, len(lengths)) / len(text)
