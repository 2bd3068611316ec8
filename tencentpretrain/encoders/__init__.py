from tencentpretrain.encoders import transformer as transformer
from tencentpretrain.encoders.base import ENCODERS, Encoder

__all__ = ["ENCODERS", "Encoder"]
