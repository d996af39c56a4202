"""An average of weights that costs one operation a step, in place of one for every tensor."""

import torch
from mmdet.registry import MODELS
from mmengine.model import ExponentialMovingAverage
from torch import Tensor, nn


@MODELS.register_module()
class MultiTensorEMA(ExponentialMovingAverage):
    """mmengine's ExponentialMovingAverage, with the same arguments and values, for ``ema_type`` of an EMAHook.

    TResNet-L has 620 tensors to average, each of which takes a GPU's host longer than the GPU.
    """

    def update_parameters(self, model: nn.Module) -> None:
        self._pairs: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
        super().update_parameters(model)
        # Where dtypes are mixed, torch goes one by one.
        for pairs in self._pairs.values():
            torch._foreach_lerp_(*zip(*pairs), self.momentum)
        del self._pairs

    def avg_func(self, averaged_param: Tensor, source_param: Tensor, steps: int) -> None:
        self._pairs.setdefault(averaged_param.dtype, []).append((averaged_param, source_param))
