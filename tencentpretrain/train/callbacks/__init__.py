from tencentpretrain.train.callbacks.base import CALLBACKS, Callback, ConfiguredCallback

__all__ = ["CALLBACKS", "Callback", "ConfiguredCallback"]
