"""Freezing as in mmdet's ResNet, and weights from files of any layout, for backbones of a stem and a list of stages."""

from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.model import BaseModule, PretrainedInit, update_init_info
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class StagedBackbone(BaseModule):
    """A subclass sets ``stem``, ``frozen_stages`` and ``norm_eval``, gives ``stages`` and ``load_pretrained``, and once
    built calls ``_freeze``.

    ``frozen_stages`` of -1 trains everything, 0 freezes the stem, k also the first k stages: no gradients, eval mode.
    ``norm_eval`` keeps every BN in eval in ``train()``.
    """

    init_cfg: dict | list[dict] | None
    stem: nn.Module
    frozen_stages: int
    norm_eval: bool

    @property
    def stages(self) -> Sequence[nn.Module]:
        raise NotImplementedError

    def load_pretrained(
        self, path: str | Path, prefix: str | None = None, map_location: str | torch.device | None = 'cpu'
    ) -> None:
        """Load a file, or raise where its tensors are not those of the model."""
        raise NotImplementedError

    def init_weights(self) -> None:
        """As mmengine's, with ``load_pretrained`` for its ``Pretrained``, which passes over what does not fit.

        It has the last word, after the other entries of ``init_cfg`` and the modules within. Where it raises, the
        model is as it was.
        """
        configured = self.init_cfg
        init_cfgs = configured if isinstance(configured, list) else [configured] if configured else []
        pretrained = [cfg for cfg in init_cfgs if cfg['type'] in ('Pretrained', PretrainedInit)]
        if not pretrained or self.is_init:
            super().init_weights()
            return
        for cfg in pretrained:
            given = PretrainedInit(**{key: value for key, value in cfg.items() if key != 'type'})
            self.load_pretrained(given.checkpoint, given.prefix, given.map_location)
        loaded = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        self.init_cfg = [cfg for cfg in init_cfgs if cfg not in pretrained]
        try:
            super().init_weights()
        finally:
            self.init_cfg = configured
        self.load_state_dict(loaded)
        if hasattr(self, '_params_init_info'):
            update_init_info(self, init_info=given._get_init_info())

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
