"""Two collectives of torch by the names that the installed version prefers: it warns of the older ones."""

from typing import Any

import torch.distributed as dist

reduce_scatter_tensor: Any = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
all_gather_into_tensor: Any = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
