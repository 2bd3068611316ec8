"""What became of every tensor of a conversion, for people."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tencentpretrain.train.load import listed


@dataclass
class Report:
    """Every tensor that was there is in one of these; nothing is left out silently.

    Args:
        converted: Names of what was made.
        tied: Names of what is one with another tensor, and was compared with it.
        recomputed: Names of what follows from the config and is not stored.
        aside: Names of what has no place in the model, and why; a converted run keeps them.
        empty: Names of what is zero or computed, so that the model is the same without it.
        filled: Names of what the other model has and this one lacks.
        unread: Keys of the config that mean nothing here.
        remarks: Sentences for the user.
    """

    converted: list[str] = field(default_factory=list)
    tied: list[str] = field(default_factory=list)
    recomputed: list[str] = field(default_factory=list)
    aside: dict[str, str] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    filled: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One line for each kind that there is."""
        lines = [f"{len(self.converted):,} tensors are converted, none is missing"]
        if self.tied:
            lines.append(f"one with another tensor, and equal to it: {listed(self.tied)}")
        if self.recomputed:
            lines.append(f"not stored, as it follows from the config: {listed(self.recomputed)}")
        for reason in Counter(self.aside.values()):
            names = [name for name, other in self.aside.items() if other == reason]
            lines.append(f"kept aside, as {reason}: {listed(names)}")
        if self.empty:
            lines.append(f"left out, as it is zero or computed: {listed(self.empty)}")
        if self.filled:
            lines.append(f"filled in, as the model has none: {listed(self.filled)}")
        if self.unread:
            lines.append(f"keys of the config that are not used: {', '.join(self.unread)}")
        return lines + self.remarks
