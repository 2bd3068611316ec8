from tencentpretrain.embeddings import cells as cells
from tencentpretrain.embeddings import concat as concat
from tencentpretrain.embeddings import patch as patch
from tencentpretrain.embeddings import speech as speech
from tencentpretrain.embeddings import text as text
from tencentpretrain.embeddings.base import PARTS, Embedding, EmbeddingPart

__all__ = ["PARTS", "Embedding", "EmbeddingPart"]
