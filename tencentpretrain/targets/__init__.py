from tencentpretrain.targets import bilm as bilm
from tencentpretrain.targets import classify as classify
from tencentpretrain.targets import contrast as contrast
from tencentpretrain.targets import distill as distill
from tencentpretrain.targets import lm as lm
from tencentpretrain.targets import mlm as mlm
from tencentpretrain.targets import pixels as pixels
from tencentpretrain.targets import reconstruct as reconstruct
from tencentpretrain.targets import span as span
from tencentpretrain.targets import tag as tag
from tencentpretrain.targets.base import TARGETS, Target, TargetConfig, Targets

__all__ = ["TARGETS", "Target", "TargetConfig", "Targets"]
