from tencentpretrain.embeddings import text as text
from tencentpretrain.embeddings.base import PARTS, Embedding, EmbeddingPart

__all__ = ["PARTS", "Embedding", "EmbeddingPart"]
