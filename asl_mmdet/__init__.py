from .models import AsymmetricLoss
from .version import __version__

__all__ = ['AsymmetricLoss', '__version__']
