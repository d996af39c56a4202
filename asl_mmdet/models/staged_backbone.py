"""Freezing as in mmdet's ResNet, for backbones of a stem and a list of stages."""

from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class StagedBackbone(BaseModule):
    """A subclass sets ``stem``, ``frozen_stages`` and ``norm_eval``, gives ``stages``, calls ``_freeze`` once built.

    ``frozen_stages`` of -1 trains everything, 0 freezes the stem, k also the first k stages: no gradients, eval mode.
    ``norm_eval`` keeps every BN in eval in ``train()``.
    """

    stem: nn.Module
    frozen_stages: int
    norm_eval: bool

    @property
    def stages(self) -> Sequence[nn.Module]:
        raise NotImplementedError

    def train(self, mode: bool = True) -> 'StagedBackbone':
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages >= 0:
            for module in (self.stem, *self.stages[: self.frozen_stages]):
                module.eval()
                module.requires_grad_(False)
