from tencentpretrain.train.callbacks import restart_codes as restart_codes
from tencentpretrain.train.callbacks.base import CALLBACKS, Callback, ConfiguredCallback

__all__ = ["CALLBACKS", "Callback", "ConfiguredCallback"]
