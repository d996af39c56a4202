"""TResNet: Ridnik et al., High Performance GPU-Dedicated Architecture, WACV 2021, https://arxiv.org/abs/2003.13630.

The architecture follows the authors' code, https://github.com/mrT23/TResNet. L-V2 is the TResNet-L of ImageNet-21K
Pretraining for the Masses, https://arxiv.org/abs/2104.10972. BatchNorm and LeakyReLU stand where the paper has
InPlaceABN, so nothing is compiled. Shapes: N images of H x W pixels, C channels.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmdet.registry import MODELS
from mmengine.logging import print_log
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..checkpoint import CheckpointError, MissingCheckpointError, read_checkpoint
from .staged_backbone import StagedBackbone

ARCHITECTURES: dict[str, dict[str, Any]] = {
    'm': dict(layers=(3, 4, 11, 3), width=1.0, v2=False),
    'l': dict(layers=(4, 5, 18, 3), width=1.2, v2=False),
    'xl': dict(layers=(4, 5, 24, 3), width=1.3, v2=False),
    'v2_l': dict(layers=(3, 4, 23, 3), width=1.0, v2=True),
}

STEM_SLOPE = 1e-2
BLOCK_SLOPE = 1e-3


def space_to_depth(x: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) to (N, 16 C, H/4, W/4): blocks of 4 x 4 pixels become channels, ordered (row, column, colour).

    The order is that of the published weights; ``F.pixel_unshuffle`` has (colour, row, column). The memory format of
    the input is kept, in one copy.
    """
    n, c, height, width = x.shape
    h, w = height // 4, width // 4
    if x.is_contiguous(memory_format=torch.channels_last):
        x = x.permute(0, 2, 3, 1).reshape(n, h, 4, w, 4, c)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, 16 * c)
        return x.permute(0, 3, 1, 2)  # (N, 16 C, H/4, W/4), channels last
    x = x.reshape(n, c, h, 4, w, 4)
    return x.permute(0, 3, 5, 1, 2, 4).reshape(n, 16 * c, h, w)


class BlurPool(nn.Module):
    """(N, C, H, W) to (N, C, ceil(H/2), ceil(W/2)) through the filter [1 2 1] x [1 2 1] / 16 with reflected borders.

    Zhang, Making Convolutional Networks Shift-Invariant Again, ICML 2019. The filter is a buffer that stays out of
    ``state_dict``: no published layout has it.
    """

    filter: torch.Tensor

    def __init__(self, channels: int):
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer('filter', torch.outer(row, row).repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode='reflect'), self.filter, stride=2, groups=x.shape[1])


class SqueezeExcite(nn.Module):
    """Channel attention of Hu et al., CVPR 2018, with a sigmoid gate; keeps (N, C, H, W)."""

    def __init__(self, channels: int, reduced: int):
        super().__init__()
        self.fc1 = _kaiming(nn.Conv2d(channels, reduced, 1))
        self.fc2 = _kaiming(nn.Conv2d(reduced, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = x.mean((2, 3), keepdim=True)  # (N, C, 1, 1)
        gate = self.fc2(F.relu(self.fc1(gate), inplace=True)).sigmoid()
        return x * gate


def _kaiming(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.kaiming_normal_(conv.weight, mode='fan_out', nonlinearity='leaky_relu')
    return conv


def _conv_norm(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    norm_cfg: dict,
    slope: float | None = None,
    blur: bool = False,
    zero_init: bool = False,
) -> nn.Sequential:
    """Convolution, norm, LeakyReLU where ``slope`` is given, and the stride of 2 where ``blur`` is set."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    norm = build_norm_layer(norm_cfg, out_channels)[1]
    if zero_init:
        nn.init.zeros_(norm.weight)
    unit = nn.Sequential(OrderedDict(conv=_kaiming(conv), norm=norm))
    if slope is not None:
        unit.add_module('act', nn.LeakyReLU(slope, inplace=True))
    if blur:
        unit.add_module('blur', BlurPool(out_channels))
    return unit


class BasicBlock(nn.Module):
    """Stages 1 and 2 of M, L and XL: (N, C_in, H, W) to (N, planes, H / stride, W / stride)."""

    expansion = 1

    def __init__(self, in_channels: int, planes: int, stride: int, se: bool, norm_cfg: dict):
        super().__init__()
        self.conv1 = _conv_norm(in_channels, planes, 3, norm_cfg, BLOCK_SLOPE, blur=stride == 2)
        self.conv2 = _conv_norm(planes, planes, 3, norm_cfg, zero_init=True)
        self.se = SqueezeExcite(planes, max(planes // 4, 64)) if se else None
        self.downsample = _downsample(in_channels, planes, stride, norm_cfg)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv2(self.conv1(x))
        if self.se is not None:
            out = self.se(out)
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


class Bottleneck(nn.Module):
    """Stages 3 and 4, and all four of V2: (N, C_in, H, W) to (N, 4 planes, H / stride, W / stride)."""

    expansion = 4

    def __init__(self, in_channels: int, planes: int, stride: int, se: bool, norm_cfg: dict):
        super().__init__()
        out_channels = planes * self.expansion
        self.conv1 = _conv_norm(in_channels, planes, 1, norm_cfg, BLOCK_SLOPE)
        self.conv2 = _conv_norm(planes, planes, 3, norm_cfg, BLOCK_SLOPE, blur=stride == 2)
        self.se = SqueezeExcite(planes, max(out_channels // 8, 64)) if se else None
        self.conv3 = _conv_norm(planes, out_channels, 1, norm_cfg, zero_init=True)
        self.downsample = _downsample(in_channels, out_channels, stride, norm_cfg)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv2(self.conv1(x))
        if self.se is not None:
            out = self.se(out)
        out = self.conv3(out)
        out += x if self.downsample is None else self.downsample(x)
        return F.relu(out, inplace=True)


def _downsample(in_channels: int, out_channels: int, stride: int, norm_cfg: dict) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    shortcut: OrderedDict[str, nn.Module] = OrderedDict()
    if stride == 2:
        # ceil_mode gives odd sizes the ceil(H/2) of BlurPool
        shortcut['pool'] = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
    shortcut.update(_conv_norm(in_channels, out_channels, 1, norm_cfg).named_children())
    return nn.Sequential(shortcut)


@MODELS.register_module()
class TResNet(StagedBackbone):
    """TResNet as a backbone: (N, in_channels, H, W) images to a tuple of features at strides 4, 8, 16 and 32.

    =====  ===============  =====================  ==========  ===========================
    arch   blocks of stage  channels of stage      parameters  with a head of 1000 classes
    =====  ===============  =====================  ==========  ===========================
    m      3, 4, 11, 3      64, 128, 1024, 2048    29.34 M     31.39 M
    l      4, 5, 18, 3      76, 152, 1216, 2432    53.56 M     55.99 M
    xl     4, 5, 24, 3      83, 166, 1328, 2656    75.78 M     78.44 M
    v2_l   3, 4, 23, 3      256, 512, 1024, 2048   44.13 M     46.17 M
    =====  ===============  =====================  ==========  ===========================

    Space-to-depth stem, blur-pool in front of each stride, squeeze-and-excitation in stages 1 to 3; basic blocks in
    stages 1 and 2 and bottlenecks in 3 and 4, V2 with bottlenecks throughout. The published weights were trained on RGB
    / 255 without mean and std.

    Args:
        arch: One of the names above, or a dict of ``layers`` (blocks per stage), ``width`` (1 gives 64 channels in the
            stem; default 1) and ``v2`` (bottlenecks throughout, widths rounded down to multiples of 8; default False).
        out_indices: Stages, from 0 to 3, whose features are returned. Stages beyond the last are not built.
        frozen_stages: -1 trains everything, 0 freezes the stem, k also the first k stages: no gradients, BN in eval.
        norm_cfg: A BN type, such as ``dict(type='SyncBN', requires_grad=True)``.
        norm_eval: Keeps BN in eval in ``train()``, so its running statistics do not move. mmdet's ResNet has True here;
            False suits training from scratch and multi-label classification.
        with_cp: Recomputes each block in the backward pass to save memory. As in mmdet's ResNet, BN statistics that do
            move then move twice per iteration.
        channels_last: Keeps weights and activations channels last, which convolutions in mixed precision on a GPU and
            CPUs prefer. Features are returned contiguous, as operations of ``mmcv.ops`` presume.
        init_cfg: ``dict(type='Pretrained', checkpoint=PATH)`` loads a file: our own, the official ``.pth``, or
            timm's ``tresnet_*`` (``.pth``, ``.safetensors``), see :meth:`load_pretrained`; ``prefix='backbone.'`` takes
            the backbone out of a whole model's checkpoint. None keeps the initialisation of the official code.
            Other types are mmengine's.

    Raises:
        ValueError: An argument out of range; in ``forward``, H or W that is not a multiple of 4.
    """

    def __init__(
        self,
        arch: str | dict,
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_cfg: dict = dict(type='BN', requires_grad=True),
        norm_eval: bool = False,
        with_cp: bool = False,
        channels_last: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(init_cfg)
        layers, planes, v2 = _Structure.of_arch(arch)
        if not out_indices or not set(out_indices) <= {0, 1, 2, 3}:
            raise ValueError(f'out_indices={out_indices!r}: one or more of the stages 0, 1, 2 and 3 are expected')
        num_stages = max(out_indices) + 1
        if not -1 <= frozen_stages <= num_stages:
            raise ValueError(
                f'frozen_stages={frozen_stages!r}: -1 (none), 0 (stem) to {num_stages} (all stages) are expected'
            )
        self.arch = arch
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.channels_last = channels_last

        self.stem = _conv_norm(16 * in_channels, planes, 3, norm_cfg, STEM_SLOPE)
        channels = planes
        stage_channels = []
        for stage in range(num_stages):
            block = Bottleneck if v2 or stage >= 2 else BasicBlock
            blocks = []
            for i in range(layers[stage]):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(block(channels, planes * 2**stage, stride, stage < 3, norm_cfg))
                channels = planes * 2**stage * block.expansion
            self.add_module(f'layer{stage + 1}', nn.Sequential(*blocks))
            stage_channels.append(channels)
        self.out_channels = tuple(stage_channels[i] for i in sorted(set(out_indices)))
        if channels_last:
            self.to(memory_format=torch.channels_last)
        self._freeze()

    @property
    def stages(self) -> list[nn.Sequential]:
        return [getattr(self, f'layer{i + 1}') for i in range(max(self.out_indices) + 1)]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        height, width = x.shape[-2:]
        if height % 4 or width % 4:
            raise ValueError(
                f'TResNet: input of height {height} and width {width}: both must be multiples of 4. Detectors pad with '
                'data_preprocessor=dict(pad_size_divisor=32), classifiers resize to such a size.'
            )
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.stem(space_to_depth(x))
        recompute = self.with_cp and torch.is_grad_enabled()
        features = []
        for i, stage in enumerate(self.stages):
            for block in stage:
                x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
            if i in self.out_indices:
                features.append(x.contiguous() if self.channels_last else x)
        return tuple(features)

    def load_pretrained(
        self, path: str | Path, prefix: str | None = None, map_location: str | torch.device | None = 'cpu'
    ) -> None:
        """Load a file in any layout that :func:`read_weights` knows and log what was loaded and what was left out.

        Raises:
            MissingCheckpointError: There is no such file; the error says where such files come from.
            CheckpointError: The file cannot be read or does not fit the model, which is unchanged then.
        """
        try:
            weights = read_weights(path, prefix, map_location)
        except MissingCheckpointError as error:
            raise MissingCheckpointError(_where_weights_come_from(path, self)) from error
        unbuilt = load_weights(self, weights, path)
        left_out = sorted([*weights.left_out, *unbuilt])
        converted = ', InPlaceABN weights w converted to |w| + 1e-5 for BN' if weights.layout == 'official' else ''
        print_log(
            f"TResNet: loaded {len(weights.state) - len(unbuilt)} tensors from '{path}' ({weights.layout} layout"
            f'{converted}); left out {len(left_out)}' + (f': {_some(left_out)}' if left_out else ''),
            logger='current',
        )


class _Structure(NamedTuple):
    """What tells one architecture from another, in a config and in a checkpoint."""

    layers: tuple[int, ...]
    planes: int
    v2: bool

    @classmethod
    def of_arch(cls, arch: str | dict) -> '_Structure':
        settings = ARCHITECTURES.get(arch) if isinstance(arch, str) else arch
        if not isinstance(settings, Mapping):
            raise ValueError(f'arch={arch!r}: one of {", ".join(map(repr, ARCHITECTURES))} or a dict is expected')
        layers = tuple(settings.get('layers', ()))
        v2 = settings.get('v2', False)
        planes = int(64 * settings.get('width', 1.0))
        if v2:
            planes = planes // 8 * 8
        if set(settings) - {'layers', 'width', 'v2'} or len(layers) != 4 or min(layers) < 1 or planes < 1:
            raise ValueError(
                f'arch={arch!r}: a dict of layers (four numbers of blocks, each at least 1), width (1 gives 64 '
                'channels in the stem) and v2 (bool) is expected, as in dict(layers=(1, 1, 1, 1), width=0.25)'
            )
        return cls(layers, planes, v2)

    @classmethod
    def of_state(cls, state: Mapping[str, torch.Tensor]) -> '_Structure':
        blocks = {tuple(key.split('.')[:2]) for key in state if key.startswith('layer')}
        layers = tuple(sum(stage == f'layer{i}' for stage, _ in blocks) for i in range(1, 5))
        return cls(layers, state['stem.conv.weight'].shape[0], 'layer1.0.conv3.conv.weight' in state)

    @property
    def arch(self) -> str | dict:
        for name in ARCHITECTURES:
            if self == self.of_arch(name):
                return name
        return dict(layers=self.layers, width=self.planes / 64, v2=self.v2)

    @property
    def missing_stages(self) -> str:
        """What to say of a file that has a stage without blocks."""
        return (
            f'The file holds the stages layers={self.layers[: self.layers.index(0)]} alone, as a backbone whose '
            'out_indices end there is saved'
        )


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints. One unit, a convolution and its norm, by layout (S = stage, B = block):
#
#            own                               timm                                 official
# stem       stem.conv, .norm                  body.conv1.conv, .bn                 body.conv1.0, .1
# block      layerS.B.conv1.conv, .norm        body.layerS.B.conv1.conv, .bn        body.layerS.B.conv1.0, .1
#   strided  the same                          the same                             body.layerS.B.conv1.0.0, .0.1
# shortcut   layerS.0.downsample.conv, .norm   body.layerS.0.downsample.1.conv, .bn body.layerS.0.downsample.1.0, .1.1
#
# The shortcut of V2's stage 1 has no pool in front, so its number is 0. Squeeze-and-excitation is layerS.B.se.fc1, .fc2
# in all three, and head.* what the other two have besides. All three order the stem's input channels alike.
# Sources: timm 1.0 models/tresnet.py; https://github.com/Alibaba-MIIL/ASL src/models/tresnet/tresnet.py.
# ---------------------------------------------------------------------------------------------------------------------

_STEM_KEYS = {'stem.conv.weight': 'own', 'body.conv1.conv.weight': 'timm', 'body.conv1.0.weight': 'official'}
_UNIT = re.compile(r'body\.(layer\d\.\d+\.)?(conv\d|downsample)(?:\.\d)*\.(conv|bn|0|1)\.(\w+)')
_SQUEEZE_EXCITE = re.compile(r'body\.(layer\d\.\d+\.se\.fc[12]\.\w+)')

_TIMM_WEIGHTS = {
    'm': 'tresnet_m.miil_in21k, tresnet_m.miil_in1k or tresnet_m.miil_in1k_448',
    'l': 'tresnet_l.miil_in1k or tresnet_l.miil_in1k_448',
    'xl': 'tresnet_xl.miil_in1k or tresnet_xl.miil_in1k_448',
    'v2_l': 'tresnet_v2_l.miil_in21k or tresnet_v2_l.miil_in21k_ft_in1k',
}


class TResNetWeights(NamedTuple):
    """A checkpoint's tensors under our keys, the layout they came in, and what is no part of a backbone: ``head.*``.

    ``classes`` are the names that the authors' classifiers list by index, empty where a file has none.
    """

    state: dict[str, torch.Tensor]
    layout: str
    left_out: dict[str, torch.Tensor]
    classes: tuple[str, ...]

    @property
    def arch(self) -> str | dict:
        """The architecture the tensors belong to, as ``TResNet`` takes it.

        Raises:
            CheckpointError: stages are missing.
        """
        structure = _Structure.of_state(self.state)
        if not all(structure.layers):
            raise CheckpointError(f'{structure.missing_stages}: take a whole one')
        return structure.arch


def read_weights(
    path: str | Path, prefix: str | None = None, map_location: str | torch.device | None = 'cpu'
) -> TResNetWeights:
    """Read a TResNet backbone in our own, timm's or the official layout.

    The keys tell the layout. Files of the official layout were trained with InPlaceABN, which scales by |w| + 1e-5
    where BN scales by w, so their norm weights become |w| + 1e-5. Files of timm's layout have plain BN: those published
    were converted before (as their model cards say), and timm converts official files by the same rule as it loads
    them. A file of the official layout that was converted already moves by another 1e-5.

    Args:
        path: A file or its address; its tensors may lie under ``state_dict`` or ``model`` and under ``module.``.
        prefix: Takes only the keys under this one, such as ``backbone.`` in the checkpoint of a detector.
        map_location: As ``torch.load``'s.

    Raises:
        MissingCheckpointError: There is no such file.
        CheckpointError: The file cannot be read without running code from it, or holds no TResNet under ``prefix``.
    """
    content = read_checkpoint(path, map_location)
    names = content.get('idx_to_class') or {}
    for container in ('model', 'state_dict'):
        if isinstance(content.get(container), Mapping):
            content = content[container]
    tensors = {
        str(key).removeprefix('module.'): value for key, value in content.items() if isinstance(value, torch.Tensor)
    }
    if prefix:
        prefix = prefix.removesuffix('.') + '.'
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    layout = next((layout for key, layout in _STEM_KEYS.items() if key in tensors), None)
    if layout is None:
        raise CheckpointError(_no_tresnet(path, prefix, content))

    state, left_out = {}, {}
    for key, value in tensors.items():
        if layout != 'own' and key.startswith('head.'):
            left_out[key] = value
            continue
        own_key = key if layout == 'own' else _own_key(key)
        if layout == 'official' and own_key.endswith('norm.weight'):
            value = value.abs() + 1e-5
        state[own_key] = value
    classes = tuple(names[index] for index in sorted(names, key=int))
    return TResNetWeights(state, layout, left_out, classes)


def _own_key(key: str) -> str:
    unit = _UNIT.fullmatch(key)
    if unit:
        block, name, part, tensor = unit.groups()
        name = name if block else 'stem'
        part = 'conv' if part in ('conv', '0') else 'norm'
        return f'{block or ""}{name}.{part}.{tensor}'
    squeeze_excite = _SQUEEZE_EXCITE.fullmatch(key)
    return squeeze_excite[1] if squeeze_excite else key


def _no_tresnet(path: str | Path, prefix: str | None, content: Mapping) -> str:
    expected = ', '.join(f'{key} ({layout})' for key, layout in _STEM_KEYS.items())
    found = f'none of {expected} is among its keys, which begin with {_some(map(str, content)) or "none"}'
    for key in content:
        for stem in _STEM_KEYS:
            if str(key).endswith(f'.{stem}'):
                where = str(key).removeprefix('module.').removesuffix(stem)
                found = f'it has one under the prefix {where!r}: set init_cfg.prefix={where!r}'
    return f"'{path}' holds no TResNet{f' under the prefix {prefix!r}' if prefix else ''}: {found}"


def load_weights(model: TResNet, weights: TResNetWeights, source: str | Path) -> list[str]:
    """Load tensors under our keys into the model, all or none.

    Returns:
        The keys left out because they belong to stages that ``out_indices`` does not need.

    Raises:
        CheckpointError: Keys are missing, unexpected or of another shape; the model is unchanged then.
    """
    expected = model.state_dict()
    unbuilt = [key for key in weights.state if re.match(r'layer\d\.', key) and int(key[5]) > len(model.stages)]
    state = {key: value for key, value in weights.state.items() if key not in unbuilt}

    # InPlaceABN before its version 2 did not count batches, and BN needs the count for momentum=None alone.
    missing = [key for key in expected if key not in state and not key.endswith('num_batches_tracked')]
    unexpected = [key for key in state if key not in expected]
    misshapen = [
        f'{key} {tuple(state[key].shape)} for {tuple(expected[key].shape)}'
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    if missing or unexpected or misshapen:
        problems = {'missing': missing, 'unexpected': unexpected, 'of another shape': misshapen}
        found = '; '.join(f'{len(keys)} {what}: {_some(keys)}' for what, keys in problems.items() if keys)
        wanted, given = _Structure.of_arch(model.arch), _Structure.of_state(weights.state)
        if not all(given.layers):
            remedy = f'{given.missing_stages}: take a whole file of arch={model.arch!r}.'
        elif given != wanted:
            remedy = f'The file holds arch={given.arch!r}: set arch so, or take a file of arch={model.arch!r}.'
        else:
            remedy = (
                'The arch is the same, so the file is incomplete (download it again) or the backbone was built '
                'differently (in_channels, norm_cfg). init_cfg=None trains from scratch.'
            )
        raise CheckpointError(
            f"'{source}' ({weights.layout} layout) does not fit TResNet(arch={model.arch!r}): {found}. {remedy}"
        )
    model.load_state_dict(state, strict=False)
    return unbuilt


def _where_weights_come_from(path: str | Path, model: TResNet) -> str:
    names = _TIMM_WEIGHTS.get(model.arch) if isinstance(model.arch, str) else None
    options = ['init_cfg=None']
    if model.frozen_stages >= 0:
        options.append('frozen_stages=-1')  # a random stage that is frozen would stay random
    if model.norm_eval:
        options.append('norm_eval=False')
    return (
        f"init_cfg.checkpoint: there is no file '{path}'. Weights of TResNet are published as timm's model files on "
        f'the Hugging Face hub ({names or "; ".join(_TIMM_WEIGHTS.values())}: '
        'https://huggingface.co/timm/NAME/resolve/main/model.safetensors) and in the official model zoos (MODEL_ZOO.md '
        'of https://github.com/mrT23/TResNet, https://github.com/Alibaba-MIIL/ImageNet21K and '
        'https://github.com/Alibaba-MIIL/ASL). Give the path of one, or its address, or train from scratch with '
        f'{", ".join(options)} (on the command line: --cfg-options '
        f'{" ".join(f"model.backbone.{option}" for option in options)}).'
    )


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ', '.join(names[:4]) + (f', … ({len(names) - 4} more)' if len(names) > 4 else '')
