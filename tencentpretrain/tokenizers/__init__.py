"""Text to numbers and back, thin over well-kept libraries."""

from tencentpretrain.tokenizers import bpe, fast, sentence_piece, simple, wordpiece

__all__ = ["bpe", "fast", "sentence_piece", "simple", "wordpiece"]
