"""How text is chosen from what a model expects: the keys of generation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tencentpretrain.config import (
    Config,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    check,
)

Share = Annotated[float, Field(gt=0, le=1)]


class Decoding(Config):
    """Keys of generation. Scores are changed in the order of the keys, then a token is chosen."""

    max_new_tokens: PositiveInt = 128
    """Greatest number of tokens that are written for a prompt; a position table may allow fewer."""
    repetition_penalty: PositiveFloat = 1.0
    """Scores of tokens that occurred, in the prompt or since, are divided by it, negative ones
    multiplied (Keskar et al., 2019, CTRL, section 4.1); 1 changes nothing."""
    temperature: NonNegativeFloat = 0.0
    """Scores are divided by it before a token is drawn; 0 takes the likeliest token instead."""
    top_k: PositiveInt | None = None
    """Draw from this many likeliest tokens only; null is all."""
    top_p: Share | None = None
    """Draw from the fewest likeliest tokens whose probabilities add up to this (Holtzman et al.,
    2020, nucleus sampling); null is all."""
    min_p: Share | None = None
    """Draw from tokens at least this many times as probable as the likeliest (Nguyen et al., 2024);
    null is all."""
    beams: PositiveInt = 1
    """Texts that a beam search goes on with at each step; 1 is none."""
    length_penalty: float = 1.0
    """Beam search divides the log-probability of a text by its number of tokens to this power;
    greater values prefer longer texts."""
    early_stopping: bool | Literal["never"] = False
    """When a beam search ends: true, with as many texts as beams; false, when the best open one as
    it is does not beat them; never, when it could not, however it goes on."""
    stop: list[str] = []
    """A text ends before the first of these strings that appears in it."""
    end_tokens: list[str] | None = None
    """Tokens that end a text; null is [eos] (or [sep]), under a template what ends an answer, [] is
    none."""
    seed: NonNegativeInt = 0
    """Of what is drawn; a text depends on it and on the number of its prompt, on no other one."""

    @check("temperature", "top_k", "top_p", "min_p")
    def _draws(self) -> str | None:
        given = [key for key in ("top_k", "top_p", "min_p") if getattr(self, key) is not None]
        if not given or self.temperature > 0:
            return None
        return f"{given[0]} needs a temperature above 0, such as temperature=1"

    @check("temperature", "beams")
    def _beams_do_not_draw(self) -> str | None:
        if self.beams == 1 or self.temperature == 0:
            return None
        return f"beams={self.beams} and temperature={self.temperature:g} exclude each other"

    @check("beams", "length_penalty", "early_stopping")
    def _for_beams(self) -> str | None:
        if self.beams > 1:
            return None
        if self.length_penalty != 1.0:
            return "length_penalty needs a beam search, such as beams=4"
        if self.early_stopping is not False:
            return "early_stopping needs a beam search, such as beams=4"
        return None

    @check("stop")
    def _stop_fits(self) -> str | None:
        return "stop must not hold an empty string" if "" in self.stop else None
