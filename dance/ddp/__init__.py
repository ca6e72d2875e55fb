"""Compressed gradients for DistributedDataParallel: a communication hook whose state has names (docs/ddp.md).

state = dance.ddp.attach(ddp_model, codec="auto")
"""

from dance.ddp.hook import attach, compress_hook
from dance.ddp.state import CompressionState, reshard
from dance.powersgd import PowerSGD

__all__ = ["CompressionState", "PowerSGD", "attach", "compress_hook", "reshard"]
