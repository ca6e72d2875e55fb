"""The networks of a GAN: multilayer perceptrons, DCGAN, a residual SNGAN, and the user's own.

None normalises over the batch: such statistics are not parameters, and averaging nodes breaks them.
"""

from dance.gan.models.flat import FlatModule
from dance.gan.models.norm import SpectralConv2d, SpectralLinear
from dance.gan.models.own import Models
from dance.gan.models.shape import NetShape

__all__ = ["FlatModule", "Models", "NetShape", "SpectralConv2d", "SpectralLinear"]
