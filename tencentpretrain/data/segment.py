"""Word segmentation, so that whole words can be masked in languages that write no spaces."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tencentpretrain.errors import DataError
from tencentpretrain.registry import TRUSTED

Segmenter = Callable[[str], Sequence[str]]
"""Cuts a sentence into words, in order; what lies between two words belongs to the first."""


def build_segmenter(name: str) -> Segmenter | None:
    """The segmenter `none`, `jieba` or `package.module:function`.

    Raises:
        DataError: if it is not known, not installed or not trusted.
    """
    if name == "none":
        return None
    if name == "jieba":
        return _jieba()
    module, colon, attribute = name.partition(":")
    if not colon:
        raise DataError(
            f"segmenter must be none, jieba or package.module:function, but is `{name}`"
        )
    if module.split(".")[0] not in TRUSTED:
        raise DataError(
            f"segmenter `{name}` is code outside the toolkit; allow it with "
            f"`plugins=[{module.split('.')[0]}]`"
        )
    try:
        function: Segmenter = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise DataError(f"segmenter `{name}` cannot be imported: {error}") from error
    return function


def _jieba() -> Segmenter:
    try:
        with warnings.catch_warnings():
            # Its way to its own files is deprecated, which users can do nothing about.
            warnings.filterwarnings("ignore", "pkg_resources is deprecated", UserWarning)
            import jieba
    except ImportError as error:
        raise DataError(
            "segmenter=jieba needs the package jieba; install it with "
            "`pip install tencentpretrain[zh]`, or choose segmenter=none"
        ) from error
    cutter = jieba.Tokenizer()
    # Its own way would read a cache from the folder for temporary files, where anyone can write.
    cutter.FREQ, cutter.total = cutter.gen_pfdict(cutter.get_dict_file())
    cutter.initialized = True
    cut: Segmenter = cutter.lcut
    return cut


def word_starts(text: str, words: Sequence[str], ends: Sequence[int]) -> NDArray[np.bool_]:
    """Whether each token of a sentence starts a word [tokens].

    Args:
        text: the sentence.
        words: its words, in order.
        ends: for each token, the number of the character behind its last one.

    Raises:
        DataError: if a word is not in the text where it should be.
    """
    word_of = np.zeros(len(text) + 1, np.int64)
    position = 0
    for word in words:
        start = text.find(word, position)
        if start < 0:
            raise DataError(f"the segmenter gave the word {word!r}, which is not next in {text!r}")
        word_of[start] += bool(word)
        position = start + len(word)
    # The last character decides: a token may begin with the space before its word.
    last = np.maximum(np.asarray(ends, np.int64) - 1, 0)
    words_of_tokens = np.cumsum(word_of)[last]
    starts: NDArray[np.bool_] = np.diff(words_of_tokens, prepend=-1) != 0
    return starts
