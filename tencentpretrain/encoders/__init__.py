from tencentpretrain.encoders import gated_cnn as gated_cnn
from tencentpretrain.encoders import none as none
from tencentpretrain.encoders import recurrent as recurrent
from tencentpretrain.encoders import transformer as transformer
from tencentpretrain.encoders.base import ENCODERS, Encoder

__all__ = ["ENCODERS", "Encoder"]
