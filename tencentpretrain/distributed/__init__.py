from tencentpretrain.distributed import mesh as mesh
from tencentpretrain.distributed.parallel import PARALLELS, Parallel

__all__ = ["PARALLELS", "Parallel"]
