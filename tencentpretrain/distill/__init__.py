from tencentpretrain.distill import akl as akl
from tencentpretrain.distill.divergences import DIVERGENCES, Divergence

__all__ = ["DIVERGENCES", "Divergence"]
