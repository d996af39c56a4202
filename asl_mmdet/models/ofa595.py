"""OFA-595, a network of the MobileNetV3 family that was cut out of a once-for-all network.

Cai et al., Once for All: Train One Network and Specialize it for Efficient Deployment, ICLR 2020,
https://arxiv.org/abs/1908.09791; published as ``flops@595M_top1@80.0_finetune@75``. It is the first backbone of
figure 8. The blocks are mmdet's. Shapes: N images of H x W pixels.
"""

import re
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from mmcv.cnn import ConvModule
from mmdet.models.layers import InvertedResidual
from mmdet.models.utils import make_divisible
from mmdet.registry import MODELS
from mmengine.logging import print_log
from torch import Tensor, nn

from ..checkpoint import CheckpointError, read_checkpoint
from .staged_backbone import StagedBackbone


class Block(NamedTuple):
    out_channels: int
    kernel_size: int
    stride: int
    mid_channels: int
    se: bool = False


# The first block has no expansion: its mid channels are those of the stem. Stages 1 to 3 use ReLU, 4 and 5 h-swish.
STEM_CHANNELS = 24
STAGES = (
    (Block(24, 3, 1, 24),),
    (Block(32, 3, 2, 72), Block(32, 5, 1, 128), Block(32, 3, 1, 96)),
    (Block(48, 5, 2, 128, True), Block(48, 5, 1, 192, True), Block(48, 3, 1, 288, True), Block(48, 5, 1, 144, True)),
    (
        Block(96, 7, 2, 288),
        Block(96, 5, 1, 576),
        Block(96, 3, 1, 288),
        Block(96, 5, 1, 384),
        Block(136, 3, 1, 576, True),
        Block(136, 5, 1, 816, True),
        Block(136, 7, 1, 816, True),
        Block(136, 3, 1, 544, True),
    ),
    (
        Block(192, 3, 2, 816, True),
        Block(192, 3, 1, 1152, True),
        Block(192, 5, 1, 1152, True),
        Block(192, 3, 1, 576, True),
    ),
)
EXPANDED_CHANNELS = 1152
MIXED_CHANNELS = 1536

HSWISH = dict(type='HSwish')


@MODELS.register_module()
class OFA595(StagedBackbone):
    """OFA-595 as a backbone: (N, 3, H, W) images to a tuple of the features that ``out_indices`` names.

    =====  ==============================================  ========
    index  feature                                         channels
    =====  ==============================================  ========
    0      map at stride 2                                 24
    1      map at stride 4                                 32
    2      map at stride 8                                 48
    3      map at stride 16                                136
    4      map at stride 32                                192
    5      (N, 1536, 1, 1): expanded, pooled, then mixed   1536
    =====  ==============================================  ========

    Classifiers take 5. In this network a 1 x 1 convolution with h-swish follows the global pooling, so pooling is part
    of the backbone, and a neck or head that pools again changes nothing. Detectors take 1 to 4.

    With a classifier of 1000 classes: 9.1 M parameters, 595 M multiply-adds in convolutions and linear layers at 236
    pixels, the published input size.

    Args:
        out_indices: features from the table. Stages beyond the last are not built.
        frozen_stages: -1 trains everything, 0 freezes the stem, k also the first k rows of the table: no gradients,
            BN in eval.
        norm_cfg: a BN type, such as ``dict(type='SyncBN')``.
        norm_eval: keeps BN in eval in ``train()``, so its running statistics do not move.
        init_cfg: ``dict(type='Pretrained', checkpoint=PATH)`` loads a file, the authors' ``init`` or our own;
            ``prefix='backbone.'`` takes the backbone out of a whole model's checkpoint.

    Raises:
        ValueError: an argument is out of its range, or a checkpoint does not fit.
    """

    def __init__(
        self,
        out_indices: Sequence[int] = (5,),
        frozen_stages: int = -1,
        norm_cfg: dict = dict(type='BN'),
        norm_eval: bool = False,
        init_cfg: dict | list[dict] | None = dict(type='Kaiming', layer='Conv2d'),
    ) -> None:
        super().__init__(init_cfg)
        if not out_indices or not set(out_indices) <= set(range(6)):
            raise ValueError(f'out_indices={out_indices!r} of OFA595 must be one or more of 0 to 5')
        num_stages = max(out_indices) + 1
        if not -1 <= frozen_stages <= num_stages:
            raise ValueError(f'frozen_stages={frozen_stages} of OFA595 must lie in [-1, {num_stages}]')
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.stem = ConvModule(3, STEM_CHANNELS, 3, stride=2, padding=1, norm_cfg=norm_cfg, act_cfg=HSWISH)
        in_channels = STEM_CHANNELS
        for i, blocks in enumerate(STAGES[:num_stages]):
            act_cfg = dict(type='ReLU') if i < 3 else HSWISH
            stage = nn.Sequential()
            for block in blocks:
                stage.append(_inverted_residual(in_channels, block, norm_cfg, act_cfg))
                in_channels = block.out_channels
            self.add_module(f'stage{i + 1}', stage)
        if num_stages == 6:
            self.stage6 = nn.Sequential(
                OrderedDict(
                    expand=ConvModule(in_channels, EXPANDED_CHANNELS, 1, norm_cfg=norm_cfg, act_cfg=HSWISH),
                    pool=nn.AdaptiveAvgPool2d(1),
                    mix=ConvModule(EXPANDED_CHANNELS, MIXED_CHANNELS, 1, bias=False, act_cfg=HSWISH),
                )
            )
        self._freeze()

    @property
    def stages(self) -> list[nn.Sequential]:
        return [getattr(self, f'stage{i + 1}') for i in range(max(self.out_indices) + 1)]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        features = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                features.append(x)
        return tuple(features)

    def load_pretrained(
        self, path: str | Path, prefix: str | None = None, map_location: str | torch.device | None = 'cpu'
    ) -> None:
        """Load a file, or one at an address, of the authors' layout or our own, all or nothing.

        Args:
            path: its tensors may lie under ``state_dict``.
            prefix: takes only the keys under this one.

        Raises:
            MissingCheckpointError: there is no such file.
            CheckpointError: the file cannot be read without running code from it, or lacks tensors of the model or
                holds them in another shape; the model is unchanged then.
        """
        content = read_checkpoint(path, map_location)
        state = content.get('state_dict', content)
        if prefix:
            prefix = prefix.removesuffix('.') + '.'
            state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        state = {_own_key(key): value for key, value in state.items()}
        expected = self.state_dict()
        wrong = [
            key
            for key, value in expected.items()
            if not key.endswith('num_batches_tracked') and (key not in state or state[key].shape != value.shape)
        ]
        if wrong:
            where = f' under the prefix {prefix!r}' if prefix else ''
            raise CheckpointError(
                f"'{path}' does not fit OFA595: {len(wrong)} of {len(expected)} tensors are missing{where} or "
                f"of another shape, {wrong[0]} among them. The authors' file is 'init' of "
                'flops@595M_top1@80.0_finetune@75'
            )
        self.load_state_dict(state, strict=False)
        left_out = sorted(set(state) - set(expected))
        print_log(
            f"OFA595: loaded '{path}'" + (f'; left out: {", ".join(left_out)}' if left_out else ''), logger='current'
        )


def _inverted_residual(in_channels: int, block: Block, norm_cfg: dict, act_cfg: dict) -> InvertedResidual:
    mid = block.mid_channels
    # SELayer takes the ratio of channels; squeezed is mid / 4, rounded to a multiple of 8.
    squeeze = dict(
        channels=mid, ratio=mid / make_divisible(mid // 4, 8), act_cfg=(dict(type='ReLU'), dict(type=nn.Hardsigmoid))
    )
    return InvertedResidual(
        in_channels,
        block.out_channels,
        mid,
        block.kernel_size,
        block.stride,
        se_cfg=squeeze if block.se else None,
        with_expand_conv=mid != in_channels,
        norm_cfg=norm_cfg,
        act_cfg=act_cfg,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints. The authors' names, of https://github.com/mit-han-lab/once-for-all; blocks are counted through all
# stages, and older files have mobile_inverted_conv where newer ones have conv.
#
# authors                                          own
# first_conv.conv, .bn                             stem.conv, .bn
# blocks.I.conv.inverted_bottleneck.conv, .bn      stageS.B.expand_conv.conv, .bn
# blocks.I.conv.depth_conv.conv, .bn               stageS.B.depthwise_conv.conv, .bn
# blocks.I.conv.depth_conv.se.fc.reduce, .expand   stageS.B.se.conv1.conv, .se.conv2.conv
# blocks.I.conv.point_linear.conv, .bn             stageS.B.linear_conv.conv, .bn
# final_expand_layer.conv, .bn                     stage6.expand.conv, .bn
# feature_mix_layer.conv                           stage6.mix.conv
# classifier.linear                                not part of the backbone
# ---------------------------------------------------------------------------------------------------------------------

_PARTS = {
    'inverted_bottleneck': 'expand_conv',
    'depth_conv': 'depthwise_conv',
    'depth_conv.se.fc.reduce': 'se.conv1.conv',
    'depth_conv.se.fc.expand': 'se.conv2.conv',
    'point_linear': 'linear_conv',
}
_OUTSIDE_BLOCKS = {'first_conv': 'stem', 'final_expand_layer': 'stage6.expand', 'feature_mix_layer': 'stage6.mix'}
_PART = '|'.join(sorted(_PARTS, reverse=True))  # the longer of two alternatives first
_BLOCK_KEY = re.compile(rf'blocks\.(\d+)\.(?:mobile_inverted_conv|conv)\.({_PART})\.(.+)')
_POSITIONS = [f'stage{s}.{b}' for s, blocks in enumerate(STAGES, 1) for b in range(len(blocks))]


def _own_key(key: str) -> str:
    block = _BLOCK_KEY.fullmatch(key)
    if block:
        index, part, rest = block.groups()
        return f'{_POSITIONS[int(index)]}.{_PARTS[part]}.{rest}' if int(index) < len(_POSITIONS) else key
    layer, _, rest = key.partition('.')
    return f'{_OUTSIDE_BLOCKS[layer]}.{rest}' if layer in _OUTSIDE_BLOCKS else key
