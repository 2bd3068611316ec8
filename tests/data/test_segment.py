"""Which tokens start a word of a segmentation."""

import sys

import pytest

from tencentpretrain.data.segment import build_segmenter, word_starts
from tencentpretrain.errors import DataError


@pytest.mark.parametrize(
    ("text", "words", "ends", "expected"),
    [
        ("北京大学 ok", ["北京", "大学", " ", "ok"], [1, 2, 3, 4, 7], [1, 0, 1, 0, 1]),
        # a token may hold the space before its word, or the bytes of one character
        ("a bcd", ["a", " ", "bcd"], [1, 3, 5], [1, 1, 0]),
        ("字x", ["字", "x"], [1, 1, 1, 2], [1, 0, 0, 1]),
        # a segmenter may leave spaces out
        ("ab  cd", ["ab", "cd"], [1, 2, 5, 6], [1, 0, 1, 0]),
        # a token across two words belongs to the second
        ("abcd", ["abc", "d"], [2, 4], [1, 1]),
        ("ab", [], [1, 2], [1, 0]),
        ("ab", ["", "ab"], [2], [1]),
    ],
)
def test_tokens_that_start_words(
    text: str, words: list[str], ends: list[int], expected: list[int]
) -> None:
    assert word_starts(text, words, ends).astype(int).tolist() == expected


def test_words_that_are_not_in_the_text_are_refused() -> None:
    with pytest.raises(DataError, match="gave the word 'x'"):
        word_starts("abc", ["a", "x"], [1, 2, 3])


def test_jieba_finds_chinese_words() -> None:
    segmenter = build_segmenter("jieba")
    assert segmenter is not None
    assert segmenter("我来到北京清华大学") == ["我", "来到", "北京", "清华大学"]


def test_a_missing_jieba_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(DataError, match=r"tencentpretrain\[zh\]"):
        build_segmenter("jieba")


def test_segmenters_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_segmenter("none") is None
    with pytest.raises(DataError, match="must be none, jieba or"):
        build_segmenter("jeiba")
    with pytest.raises(DataError, match=r"plugins=\[shlex\]"):
        build_segmenter("shlex:split")
    monkeypatch.setattr("tencentpretrain.data.segment.TRUSTED", {"shlex"})
    segmenter = build_segmenter("shlex:split")
    assert segmenter is not None
    assert segmenter("a b") == ["a", "b"]
    with pytest.raises(DataError, match="cannot be imported"):
        build_segmenter("shlex:spilt")
