from tencentpretrain.wrappers import lora
from tencentpretrain.wrappers.base import WRAPPERS, Wrapper, apply_wrappers

__all__ = ["WRAPPERS", "Wrapper", "apply_wrappers", "lora"]
