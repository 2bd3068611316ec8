"""Beam search: the texts with the greatest log-probability among those that are looked at.

Scores. A text that has ended is worth the sum of the log-probabilities of its tokens, the end token
among them, divided by (number of its tokens) ^ length_penalty.

Steps. Of all continuations of the k open texts of a prompt, the best max(2, ends + 1) * k are
looked at, so that k remain open however many of them end. Of those that end, the ones among the
best k become finished texts, of which the best k are kept. The best k that do not end stay open.
A string that stops texts ends one with the token that completes it; so may many continuations, and
as many are looked at as it takes to find k that do not.

End. A prompt is done at its limit of tokens; or with k finished texts, if `early_stopping` is true;
or else once there are k finished texts and the best open one does not beat the worst of them when
divided by the power of its present length or, with "never" and a positive penalty, of the limit.
These are the rules that `transformers` has published.

Shapes: B prompts, k beams, V vocabulary, T tokens that may be written, C continuations looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tencentpretrain.generate.choice import Seen, penalise
from tencentpretrain.generate.decoding import Decoding
from tencentpretrain.generate.rows import GrowingRows
from tencentpretrain.generate.text import GrowingText
from tencentpretrain.generate.written import Written


@dataclass
class _Texts:
    """Texts [B, k] with the best first.

    Args:
        scores: [B, k]; minus infinity where there is none.
        tokens: [B, k, T].
        lengths: [B, k] in tokens.
    """

    scores: Tensor
    tokens: Tensor
    lengths: Tensor

    @classmethod
    def none(cls, prompts: int, beams: int, steps: int, device: torch.device) -> _Texts:
        shape = (prompts, beams)
        return cls(
            torch.full(shape, -torch.inf, device=device),
            torch.zeros(*shape, steps, dtype=torch.int64, device=device),
            torch.zeros(shape, dtype=torch.int64, device=device),
        )

    def best(self, count: int) -> tuple[_Texts, Tensor]:
        """The best `count`, and their places [B, count]."""
        scores, places = self.scores.topk(count)
        tokens = _take(self.tokens, places)
        return _Texts(scores, tokens, self.lengths.gather(1, places)), places

    def with_(self, other: _Texts) -> _Texts:
        """These and `other` ones of the same prompts."""
        return _Texts(
            torch.cat([self.scores, other.scores], 1),
            torch.cat([self.tokens, other.tokens], 1),
            torch.cat([self.lengths, other.lengths], 1),
        )


def _take(tokens: Tensor, places: Tensor) -> Tensor:
    """The texts [B, n, T] at `places` [B, n] of `tokens` [B, m, T]."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[2]))


class _Stops:
    """What the open texts say, for strings that stop them: the host reads every continuation.

    Args:
        texts: Of each prompt, with nothing written yet.
        beams: Open texts of a prompt.
    """

    def __init__(self, texts: Sequence[GrowingText], beams: int) -> None:
        self._open = [[text] * beams for text in texts]
        self._looked: list[list[GrowingText | None]] = []

    def look(self, parents: Tensor, tokens: Tensor, is_read: Tensor) -> Tensor:
        """Which continuations [B, C] are stopped, of those of them that `is_read` [B, C] names."""
        rows = zip(self._open, parents.tolist(), tokens.tolist(), is_read.tolist(), strict=True)
        self._looked = [
            [
                texts[parent].with_(token) if is_text else None
                for parent, token, is_text in zip(*row, strict=True)
            ]
            for texts, *row in rows
        ]
        stopped = [[t is not None and t.is_stopped for t in row] for row in self._looked]
        return torch.tensor(stopped, device=tokens.device)

    def keep(self, places: Tensor) -> None:
        """Go on with the continuations at `places` [B, k]; what was not read is worth nothing."""
        self._open = [
            [looked[place] or open_ for place, open_ in zip(kept, texts, strict=True)]
            for looked, kept, texts in zip(self._looked, places.tolist(), self._open, strict=True)
        ]


class BeamSearch:
    """One search over a batch of prompts.

    Args:
        rows: The prompts, one row each.
        written: Limits and ends of each, to be filled.
        decoding: Number of beams and how texts are compared.
        seen: What occurred in each row, where repetition is penalised.
    """

    def __init__(
        self,
        rows: GrowingRows,
        written: Sequence[Written],
        decoding: Decoding,
        seen: Seen | None,
    ) -> None:
        self._rows = rows
        self._written = written
        self._decoding = decoding
        self._seen = seen
        self._ends = sorted(written[0].ends)
        self._steps = max(row.limit for row in written)
        texts = [row.text for row in written if row.text is not None and row.text.may_stop]
        self._stops = _Stops(texts, decoding.beams) if texts else None

    def run(self, look_every: int) -> None:
        """Search; every `look_every` steps the host asks whether all prompts are done."""
        prompts, beams, steps = len(self._written), self._decoding.beams, self._steps
        log_probabilities = self._normalised(self._rows.start())
        device = log_probabilities.device
        self._limits = torch.tensor([row.limit for row in self._written], device=device)
        self._end_ids = torch.tensor(self._ends, dtype=torch.int64, device=device)
        self._first = torch.arange(prompts, device=device)[:, None] * beams
        # All beams of a prompt begin alike, so only the first of them counts.
        self._open = _Texts.none(prompts, beams, steps, device)
        self._open.scores[:, 0] = 0
        self._finished = _Texts.none(prompts, beams, steps, device)
        self._is_searched = torch.ones(prompts, dtype=torch.bool, device=device)
        repeated = [row for row in range(prompts) for _ in range(beams)]
        self._rows.select(repeated)
        chosen = torch.tensor(repeated, device=device)
        if self._seen is not None:
            self._seen.select(chosen)
        log_probabilities = log_probabilities.index_select(0, chosen)
        for step in range(steps):
            parents, tokens = self._step(log_probabilities, step)
            is_last = step + 1 == steps
            if is_last or (step % look_every == 0 and not bool(self._is_searched.any())):
                break
            self._rows.reorder(parents)
            if self._seen is not None:
                self._seen.select(parents)
                self._seen.add(tokens)
            log_probabilities = self._normalised(self._rows.append(tokens))
        self._fill()

    def _normalised(self, scores: Tensor) -> Tensor:
        """Log-probabilities, the penalty applied to them as published."""
        normalised = scores.float().log_softmax(-1)
        if self._seen is None:
            return normalised
        return penalise(normalised, self._seen.table, self._decoding.repetition_penalty)

    def _step(self, log_probabilities: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Choose among the continuations; returns the rows [B * k] to go on with and their tokens.

        Args:
            log_probabilities: [B * k, V] of the next token.
            step: Tokens that are written so far.
        """
        beams, decoding = self._decoding.beams, self._decoding
        width, length = log_probabilities.shape[1], step + 1
        sums = self._open.scores[..., None] + log_probabilities.view(-1, beams, width)
        values, parents, tokens, is_end = self._look(sums, length)
        texts = _take(self._open.tokens, parents)
        texts[:, :, step] = tokens
        looked = _Texts(values, texts, torch.full_like(tokens, length))
        self._finish(looked, is_end, length**decoding.length_penalty)
        looked.scores = values.masked_fill(is_end, -torch.inf)
        self._open, kept = looked.best(beams)
        if self._stops is not None:
            self._stops.keep(kept)
        self._close(length)
        rows = (parents.gather(1, kept) + self._first).flatten()
        return rows, tokens.gather(1, kept).flatten()

    def _look(self, sums: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scores, parents, tokens and ends [B, C] of the best continuations.

        Args:
            sums: [B, k, V] scores of all of them.
            length: Their tokens.
        """
        _, beams, width = sums.shape
        most = beams * width
        count = min(max(2, len(self._ends) + 1) * beams, most)
        goes_on = self._is_searched & (self._limits > length)
        while True:
            values, places = sums.flatten(1).topk(count)
            parents, tokens = places // width, places % width
            is_end = torch.isin(tokens, self._end_ids) | (self._limits <= length)[:, None]
            if self._stops is None:
                return values, parents, tokens, is_end
            is_read = ~is_end & goes_on[:, None] & (values > -torch.inf)
            is_stopped = self._stops.look(parents, tokens, is_read)
            is_enough = (is_read & ~is_stopped).sum(1) >= beams
            if count == most or bool((is_enough | ~goes_on).all()):
                return values, parents, tokens, is_end | is_stopped
            count = min(2 * count, most)

    def _finish(self, looked: _Texts, is_end: Tensor, divisor: float) -> None:
        """Keep the best of the texts that have ended."""
        is_good = torch.arange(is_end.shape[1], device=is_end.device) < self._decoding.beams
        is_new = is_end & is_good & self._is_searched[:, None]
        ended = _Texts(
            (looked.scores / divisor).masked_fill(~is_new, -torch.inf),
            looked.tokens,
            looked.lengths,
        )
        self._finished, _ = self._finished.with_(ended).best(self._decoding.beams)

    def _close(self, length: int) -> None:
        """End the search of prompts that are done."""
        decoding = self._decoding
        worst = self._finished.scores[:, -1]
        is_full = worst > -torch.inf
        divisor: Tensor | float = float(length**decoding.length_penalty)
        if decoding.early_stopping == "never" and decoding.length_penalty > 0:
            divisor = self._limits.float() ** decoding.length_penalty
        is_done = is_full & (self._open.scores[:, 0] / divisor <= worst)
        if decoding.early_stopping is True:
            is_done = is_full
        self._is_searched = self._is_searched & ~is_done & (self._limits > length)

    def _fill(self) -> None:
        lengths = self._finished.lengths[:, 0].tolist()
        scores = self._finished.scores[:, 0].tolist()
        tokens = self._finished.tokens[:, 0].tolist()
        for row, ids, length, score in zip(self._written, tokens, lengths, scores, strict=True):
            row.push(ids[:length])
            row.score = score
