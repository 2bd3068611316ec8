from tencentpretrain.wrappers.base import WRAPPERS, Wrapper

__all__ = ["WRAPPERS", "Wrapper"]
