from tencentpretrain.decoders import transformer as transformer
from tencentpretrain.decoders.base import DECODERS, Decoder

__all__ = ["DECODERS", "Decoder"]
