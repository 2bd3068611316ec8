"""Packing whole items into rows of one length, so that few rows have room left."""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np

from tencentpretrain.data.order import Permutation
from tencentpretrain.data.packing import Integers


def assign_rows(counts: Integers, room: int) -> list[tuple[int, Integers]]:
    """Pack items by their sizes, the greatest first, each where the least room is left.

    Items of one size are interchangeable, so that the work grows with the number of sizes and not
    with that of items (best fit decreasing over a histogram).

    Args:
        counts: [room + 1] number of items of each size; none has size 0.
        room: of a row.

    Returns:
        Sizes, descending, with the row of each of their items.
    """
    left: list[int] = []  # different amounts of room that rows have left, ascending
    rows: dict[int, list[Integers]] = {}
    made = 0
    placed: list[tuple[int, Integers]] = []
    for size in range(room, 0, -1):
        waiting = int(counts[size])
        found: list[Integers] = []
        while waiting:
            place = bisect_left(left, size)
            if place < len(left):
                free = left.pop(place)
                candidates = np.concatenate(rows.pop(free))
            else:
                free = room
                candidates = np.arange(made, made - (-waiting // (room // size)))
                made += len(candidates)
            each = free // size
            used = -(-waiting // each)
            taken, rest = candidates[:used], candidates[used:]
            items = taken.repeat(each)[:waiting]
            waiting -= len(items)
            found.append(items)
            last = len(items) - each * (len(taken) - 1)
            for group, filled in ((taken[:-1], each), (taken[-1:], last), (rest, 0)):
                if len(group):
                    _put(left, rows, free - filled * size, group)
        if found:
            placed.append((size, np.concatenate(found)))
    return placed


def _put(left: list[int], rows: dict[int, list[Integers]], free: int, group: Integers) -> None:
    if free == 0:
        return
    if free not in rows:
        insort(left, free)
        rows[free] = []
    rows[free].append(group)


class Bins:
    """Items of at most `room` tokens in rows; which items of equal size meet changes by epoch.

    Args:
        sizes: [N] tokens of each item, from 1 to `room`.
        room: tokens of a row.
        seed: of who meets whom.
    """

    def __init__(self, sizes: Integers, room: int, seed: int) -> None:
        self._seed = seed
        # [N] items by size, the greatest first
        self._items = np.argsort(-sizes, kind="stable")
        placed = assign_rows(np.bincount(sizes, minlength=room + 1), room)
        rows = np.concatenate([row for _, row in placed] or [np.zeros(0, np.int64)])
        # [N] places in `_items`, row after row
        self._places = np.argsort(rows, kind="stable")
        self._ends = np.cumsum(np.bincount(rows))
        # [sizes] where each size ends in `_items`
        self._size_ends = np.cumsum([len(row) for _, row in placed], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def items(self, epoch: int, row: int) -> list[int]:
        """Numbers of the items in `row` of `epoch`; each item is in one row of every epoch."""
        start = int(self._ends[row - 1]) if row else 0
        return [self._item(epoch, int(place)) for place in self._places[start : self._ends[row]]]

    def _item(self, epoch: int, place: int) -> int:
        number = int(self._size_ends.searchsorted(place, side="right"))
        begin = int(self._size_ends[number - 1]) if number else 0
        count = int(self._size_ends[number]) - begin
        return int(
            self._items[begin + Permutation(count, self._seed, epoch, number).at(place - begin)]
        )
