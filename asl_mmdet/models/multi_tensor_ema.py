"""An average of weights that costs one operation a step, in place of one for every tensor."""

import torch
from mmdet.registry import MODELS
from mmengine.model import ExponentialMovingAverage
from torch import Tensor, nn


@MODELS.register_module()
class MultiTensorEMA(ExponentialMovingAverage):
    """mmengine's ExponentialMovingAverage, with the same arguments and values, for ``ema_type`` of an EMAHook.

    TResNet-L has 535 tensors to average, each of which takes a GPU's host longer than the GPU. One that several modules
    share is averaged once; with ``update_buffers`` mmengine's average does so under each of its names.
    """

    def update_parameters(self, model: nn.Module) -> None:
        self._pairs: dict[torch.dtype, dict[int, tuple[Tensor, Tensor]]] = {}
        super().update_parameters(model)
        # Where dtypes are mixed, torch goes one by one.
        for pairs in self._pairs.values():
            torch._foreach_lerp_(*zip(*pairs.values()), self.momentum)
        del self._pairs

    def avg_func(self, averaged_param: Tensor, source_param: Tensor, steps: int) -> None:
        # Twice in a list, a tensor would be read and written at the same time.
        self._pairs.setdefault(averaged_param.dtype, {})[averaged_param.data_ptr()] = averaged_param, source_param
