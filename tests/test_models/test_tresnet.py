"""timm's own models, the official key layout and values by hand against TResNet and its checkpoint remap."""

import importlib
import logging
import pickle
import re
import runpy
import subprocess
import sys
from pathlib import Path

import mmdet.models  # noqa: F401  (registers FPN)
import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from safetensors.torch import load_file, save_file
from torch import nn

from asl_mmdet.checkpoint import load_all_weights, read_checkpoint
from asl_mmdet.models import ImageClassifier
from asl_mmdet.models.tresnet import ARCHITECTURES, BlurPool, TResNet, space_to_depth

TINY = dict(layers=(1, 2, 1, 1), width=0.25)
TINY_V2 = dict(layers=(1, 1, 1, 1), width=0.3, v2=True)  # 19 channels, rounded down to 16
CONVERTER = Path(__file__).parents[2] / 'tools/model_converters/tresnet.py'


def randomise(model, seed=0):
    """Norms that scale, shift and have seen data: at their initial values whole branches would be zero.

    The last norm of a block, which starts at zero, stays small, so that features keep their size over 30 blocks.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            low, high = (0.5, 1.5) if module.weight.any() else (0.1, 0.3)
            module.weight.data.uniform_(low, high, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


def tiny(arch=TINY, **kwargs):
    torch.manual_seed(0)
    return randomise(TResNet(arch, **kwargs))


def images(*shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def initialised(path, arch=TINY, **kwargs):
    model = TResNet(arch, init_cfg=dict(type='Pretrained', checkpoint=str(path), **kwargs))
    model.init_weights()
    return model.eval()


def assert_same_features(actual, expected, atol=1e-4):
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        assert b.abs().max() > 0.1  # a network that outputs nothing agrees with anything
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.fixture(scope='module')
def timm_tresnet():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(CONVERTER.parents[1] / 'analysis_tools')
        module = importlib.import_module('timm_tresnet').import_timm_tresnet()
    return module or pytest.skip('timm is not installed (pip install --no-deps timm)')


def official_layout(state, negative=()):
    """Our state under the names of the official code: nested Sequentials, no norm named, InPlaceABN weights.

    A stride of 2 wraps convolution and norm once more, beside the anti-alias layer. InPlaceABN takes |w| + 1e-5, so
    every second weight gets a minus and all are smaller by 1e-5.
    """
    official = {}
    for key, value in state.items():
        parts = key.split('.')
        if parts[-2] in ('conv', 'norm'):
            leaf = {'conv': '0', 'norm': '1'}[parts[-2]]
            if parts[0] == 'stem':
                name = f'conv1.{leaf}'
            elif parts[2] == 'downsample':
                pooled = parts[0] != 'layer1'
                name = f'{parts[0]}.0.downsample.{int(pooled)}.{leaf}'
            else:
                bottleneck = f'{parts[0]}.0.conv3.conv.weight' in state
                strided = parts[0] != 'layer1' and parts[1] == '0' and parts[2] == ('conv2' if bottleneck else 'conv1')
                name = f'{parts[0]}.{parts[1]}.{parts[2]}.{"0." if strided else ""}{leaf}'
            key = f'body.{name}.{parts[-1]}'
            if leaf == '1' and parts[-1] == 'weight':
                value = value - 1e-5
                value[::2] *= -1
        else:
            key = f'body.{key}'
        official[key] = value
    return official


def official_file(path, model, **extra):
    state = official_layout(model.state_dict())
    state |= {'head.fc.weight': torch.zeros(80, 8), 'head.fc.bias': torch.zeros(80)}
    torch.save(dict(model=state, num_classes=80, idx_to_class={0: 'person', 1: 'bicycle'}, **extra), path)
    return state


@pytest.fixture
def log(caplog):
    """Messages of mmengine's current logger, which does not propagate."""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, logger=logger.name)
    yield caplog
    logger.removeHandler(caplog.handler)


# --------------------------------------------------------------------------------------------------------- architecture


@pytest.mark.parametrize(
    ('arch', 'parameters', 'channels'),
    [
        ('m', 29_340_032, (64, 128, 1024, 2048)),
        ('l', 53_556_256, (76, 152, 1216, 2432)),
        ('xl', 75_779_244, (83, 166, 1328, 2656)),
        ('v2_l', 44_125_824, (256, 512, 1024, 2048)),
    ],
)
def test_parameters_channels_and_strides(arch, parameters, channels):
    with torch.device('meta'):
        model = TResNet(arch).eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.out_channels == channels
    features = model(torch.empty(2, 3, 64, 96, device='meta'))
    assert [tuple(f.shape) for f in features] == [
        (2, c, 64 // s, 96 // s) for c, s in zip(channels, (4, 8, 16, 32), strict=True)
    ]


def test_out_indices_build_no_stage_beyond_the_last():
    model = TResNet(TINY, out_indices=(0, 2))
    assert [tuple(f.shape) for f in model(images(1, 3, 64, 64))] == [(1, 16, 16, 16), (1, 256, 4, 4)]
    assert model.out_channels == (16, 256)
    assert not hasattr(model, 'layer4')


def test_space_to_depth_orders_channels_by_row_column_colour():
    x = images(2, 3, 8, 12)
    for x in (x, x.to(memory_format=torch.channels_last)):
        out = space_to_depth(x)
        assert out.shape == (2, 48, 2, 3)
        for row, column, colour in ((0, 0, 0), (0, 0, 2), (0, 3, 1), (2, 1, 0), (3, 3, 2)):
            assert torch.equal(out[:, 12 * row + 3 * column + colour], x[:, colour, row::4, column::4])
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_blur_pool_by_hand():
    pool = BlurPool(2)
    # columns 0 1 2 3 | reflected 1 0 1 2: (1 + 0 + 1) / 4 = 0.5 and (1 + 4 + 3) / 4 = 2; rows add nothing
    x = torch.arange(4.0).repeat(1, 2, 4, 1)
    assert torch.equal(pool(x), torch.tensor([0.5, 2.0]).repeat(1, 2, 2, 1))
    impulse = torch.zeros(1, 2, 6, 6)
    impulse[0, 1, 3, 3] = 16  # beside the centres 2 and 4: a quarter of the weight to each of the four around
    expected = torch.zeros(1, 2, 3, 3)
    expected[0, 1, 1:, 1:] = 1
    assert torch.equal(pool(impulse), expected)
    assert pool.state_dict() == {}
    assert pool.to(torch.bfloat16).filter.dtype == torch.bfloat16


def test_slopes_of_leaky_relu():
    model = TResNet(TINY)
    assert model.stem.act.negative_slope == 1e-2
    slopes = [module.negative_slope for module in model.modules() if isinstance(module, nn.LeakyReLU)]
    # the stem; one in each of 3 basic blocks, two in each of 2 bottlenecks
    assert slopes == [1e-2] + [1e-3] * (3 + 2 * 2)


def test_initialisation_from_scratch():
    torch.manual_seed(0)
    model = TResNet(dict(layers=(1, 1, 1, 1), width=1.0))
    # kaiming, fan_out, gain sqrt(2): std = sqrt(2 / (9 * 64))
    assert model.layer1[0].conv1.conv.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    assert model.layer3[0].se.fc2.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.02)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            last = re.fullmatch(r'layer[12]\.0\.conv2\.norm|layer[34]\.0\.conv3\.norm', name)
            assert (module.weight == (0 if last else 1)).all(), name
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_other_initialisers_are_mmengines():
    model = TResNet(TINY, init_cfg=[dict(type='Constant', layer='Conv2d', val=0.5)])
    model.init_weights()
    assert (model.layer4[0].conv3.conv.weight == 0.5).all()


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(arch='s'), "arch='s': one of 'm', 'l', 'xl', 'v2_l'"),
        (dict(arch=50), 'arch=50: one of'),
        (dict(arch=dict(layers=(1, 1, 1))), 'four numbers of blocks'),
        (dict(arch=dict(layers=(1, 1, 1, 1), depth=3)), 'depth'),
        (dict(arch=TINY, out_indices=(0, 4)), r'out_indices=\(0, 4\)'),
        (dict(arch=TINY, out_indices=()), r'out_indices=\(\)'),
        (dict(arch=TINY, frozen_stages=5), r'frozen_stages=5: .* to 4'),
        (dict(arch=TINY, out_indices=(0, 1), frozen_stages=3), r'frozen_stages=3: .* to 2'),
    ],
)
def test_arguments_out_of_range_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        TResNet(**kwargs)


@pytest.mark.parametrize(('height', 'width'), [(62, 64), (64, 33)])
def test_sizes_that_are_no_multiple_of_4_are_refused(height, width):
    with pytest.raises(ValueError, match=f'height {height} and width {width}: both must be multiples of 4'):
        TResNet(TINY)(images(1, 3, height, width))


# ----------------------------------------------------------------------------------------------------------------- timm


@pytest.mark.parametrize(('arch', 'suffix'), [('m', '.pth'), ('l', '.safetensors'), ('v2_l', '.bin')])
def test_features_equal_timm(timm_tresnet, tmp_path, arch, suffix, log):
    torch.manual_seed(0)
    theirs = randomise(getattr(timm_tresnet, f'tresnet_{arch}')(num_classes=7)).eval()
    path = tmp_path / f'weights{suffix}'
    (save_file if suffix == '.safetensors' else torch.save)(theirs.state_dict(), path)
    ours = TResNet(arch).eval()
    ours.load_pretrained(path)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.body.parameters())
    for shape in ((2, 3, 32, 32), (1, 3, 96, 96), (1, 3, 160, 224)):
        x = images(*shape)
        with torch.no_grad():
            expected = theirs.forward_intermediates(x, indices=[1, 2, 3, 4], intermediates_only=True)
            assert_same_features(ours(x), expected)
    tensors = len(theirs.state_dict()) - 2
    assert f'loaded {tensors} tensors from' in log.text
    assert '(timm layout); left out 2: head.fc.bias, head.fc.weight' in log.text


@pytest.mark.parametrize('arch', [TINY, TINY_V2])
def test_training_equals_timm(timm_tresnet, tmp_path, arch):
    torch.manual_seed(0)
    theirs = timm_tresnet.TResNet(arch['layers'], width_factor=arch['width'], v2=arch.get('v2', False), num_classes=0)
    randomise(theirs).double()
    torch.save(theirs.state_dict(), tmp_path / 'weights.pth')
    ours = initialised(tmp_path / 'weights.pth', arch).double().train()
    x = images(2, 3, 68, 100).double()  # odd sizes from stage 1 on
    losses = []
    for model, features in (
        (ours, ours(x)),
        (theirs, theirs.forward_intermediates(x, indices=[1, 2, 3, 4], intermediates_only=True)),
    ):
        loss = sum((f**2).mean() for f in features)
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    for name, key in (
        ('stem.conv', 'conv1.conv'),
        ('layer2.0.conv1.conv', 'layer2.0.conv1.conv'),
        ('layer3.0.conv2.norm', 'layer3.0.conv2.bn'),
        ('layer3.0.se.fc1', 'layer3.0.se.fc1'),
        ('layer4.0.downsample.conv', 'layer4.0.downsample.1.conv'),
    ):
        a, b = ours.get_submodule(name), theirs.body.get_submodule(key)
        torch.testing.assert_close(a.weight.grad, b.weight.grad, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(ours.layer1[0].conv1.norm.running_mean, theirs.body.layer1[0].conv1.bn.running_mean)


@pytest.mark.parametrize('arch', [TINY, TINY_V2])
def test_official_names_of_these_tests_are_those_timm_reads(timm_tresnet, arch):
    ours = tiny(arch).eval()
    theirs = timm_tresnet.TResNet(arch['layers'], width_factor=arch['width'], v2=arch.get('v2', False), num_classes=0)
    official = official_layout(ours.state_dict())
    theirs.load_state_dict(timm_tresnet.checkpoint_filter_fn(dict(model=official), theirs), strict=True)
    x = images(1, 3, 96, 64)
    with torch.no_grad():
        expected = theirs.eval().forward_intermediates(x, indices=[1, 2, 3, 4], intermediates_only=True)
        assert_same_features(ours(x), expected)


# ---------------------------------------------------------------------------------------------------------- checkpoints


def test_official_names_by_hand():
    # src/models/tresnet/tresnet.py of https://github.com/Alibaba-MIIL/ASL, and of ImageNet21K for V2
    keys = official_layout(tiny().state_dict()).keys()
    assert keys >= {
        'body.conv1.0.weight',
        'body.conv1.1.running_var',
        'body.layer1.0.conv1.0.weight',
        'body.layer2.0.conv1.0.0.weight',
        'body.layer2.0.conv1.0.1.bias',
        'body.layer2.0.conv2.1.weight',
        'body.layer2.0.downsample.1.0.weight',
        'body.layer2.1.conv1.1.running_mean',
        'body.layer3.0.conv2.0.1.weight',
        'body.layer3.0.se.fc2.bias',
        'body.layer4.0.downsample.1.1.bias',
    }
    assert 'body.layer1.0.downsample.0.1.bias' in official_layout(tiny(TINY_V2).state_dict())


@pytest.mark.parametrize('arch', [TINY, TINY_V2])
def test_official_file_loads_with_abn_weights_converted(tmp_path, arch, log):
    source = tiny(arch)
    official = official_file(tmp_path / 'official.pth', source)
    assert (official['body.conv1.1.weight'] < 0).any()
    model = initialised(tmp_path / 'official.pth', arch)
    for key, value in source.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=0, atol=1e-6 if 'norm.weight' in key else 0)
    assert f'loaded {len(official) - 2} tensors' in log.text
    assert '(official layout, InPlaceABN weights w converted to |w| + 1e-5 for BN); left out 2: head.fc' in log.text


def test_abn_conversion_keeps_its_hands_off_other_layouts(tmp_path):
    source = tiny()
    source.stem.norm.weight.data[0] = -0.5
    torch.save(source.state_dict(), tmp_path / 'own.pth')
    assert initialised(tmp_path / 'own.pth').stem.norm.weight[0] == -0.5
    timm = {f'body.{key}'.replace('norm.', 'bn.'): value for key, value in source.state_dict().items()}
    timm = {key.replace('body.stem', 'body.conv1').replace('downsample', 'downsample.1'): v for key, v in timm.items()}
    torch.save(timm, tmp_path / 'timm.pth')
    assert initialised(tmp_path / 'timm.pth').stem.norm.weight[0] == -0.5


def test_official_file_of_an_inplace_abn_that_counts_no_batches(tmp_path):
    source = tiny()
    state = {k: v for k, v in official_layout(source.state_dict()).items() if 'num_batches_tracked' not in k}
    torch.save(dict(state_dict={f'module.{k}': v for k, v in state.items()}), tmp_path / 'official.pth')
    model = initialised(tmp_path / 'official.pth')
    assert model.stem.norm.num_batches_tracked == 0
    x = images(1, 3, 64, 64)
    assert_same_features(model(x), source.eval()(x), atol=1e-5)


def test_backbone_out_of_a_detectors_checkpoint(tmp_path):
    source = tiny()
    state = {f'backbone.{k}': v for k, v in source.state_dict().items()} | {'bbox_head.bias': torch.zeros(3)}
    torch.save(dict(meta=dict(epoch=3), state_dict=state), tmp_path / 'detector.pth')
    for prefix in ('backbone.', 'backbone'):
        model = initialised(tmp_path / 'detector.pth', prefix=prefix)
        assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items())
    with pytest.raises(ValueError, match=r"holds no TResNet: .*set init_cfg.prefix='backbone\.'"):
        initialised(tmp_path / 'detector.pth')
    with pytest.raises(ValueError, match=r"no TResNet under the prefix 'neck\.'.*set init_cfg.prefix='backbone\.'"):
        initialised(tmp_path / 'detector.pth', prefix='neck')


def test_init_weights_of_a_whole_model_reaches_the_backbone_once(tmp_path):
    source = tiny()
    torch.save(source.state_dict(), tmp_path / 'own.pth')
    detector = dict(
        type='SingleStageDetector',
        backbone=dict(
            type='TResNet', arch=TINY, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'own.pth'))
        ),
        neck=dict(type='FPN', in_channels=[16, 32, 256, 512], out_channels=8, num_outs=5),
        bbox_head=dict(type='FCOSHead', num_classes=3, in_channels=8, feat_channels=32, stacked_convs=1),
    )
    with DefaultScope.overwrite_default_scope('mmdet'):  # a Runner of another test may have left its own
        model = MODELS.build(detector)
    model.init_weights()
    assert model.backbone.is_init
    assert model.backbone.init_cfg == dict(type='Pretrained', checkpoint=str(tmp_path / 'own.pth'))
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.backbone.state_dict().items())
    shapes = [tuple(f.shape) for f in model.neck(model.backbone(images(1, 3, 64, 96)))]
    assert shapes == [(1, 8, 16, 24), (1, 8, 8, 12), (1, 8, 4, 6), (1, 8, 2, 3), (1, 8, 1, 2)]


def test_stages_that_are_not_built_are_left_out(tmp_path, log):
    source = tiny()
    torch.save(source.state_dict(), tmp_path / 'own.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'own.pth'))
    model = TResNet(TINY, out_indices=(1,), init_cfg=init_cfg)
    model.init_weights()
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items())
    beyond = sum(k.startswith(('layer3', 'layer4')) for k in source.state_dict())
    assert f'loaded {len(source.state_dict()) - beyond} tensors' in log.text
    assert f'left out {beyond}: layer3.0' in log.text


def test_file_of_another_architecture_is_refused(tmp_path):
    official_file(tmp_path / 'official.pth', tiny(TINY_V2))
    model = TResNet(TINY, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'official.pth')))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        model.init_weights()
    message = str(error.value)
    assert f"'{tmp_path / 'official.pth'}' (official layout) does not fit TResNet(arch={TINY!r})" in message
    assert 'missing: layer2.1.conv1.conv.weight, ' in message
    assert 'unexpected: layer1.0.conv3.conv.weight' in message
    assert 'of another shape: layer1.0.conv1.conv.weight (16, 16, 1, 1) for (16, 16, 3, 3)' in message
    assert f'The file holds arch={dict(layers=(1, 1, 1, 1), width=0.25, v2=True)!r}: set arch so' in message
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model.is_init


def test_file_of_another_width_is_refused(tmp_path):
    torch.save(tiny(dict(TINY, width=0.5)).state_dict(), tmp_path / 'own.pth')
    with pytest.raises(ValueError) as error:
        initialised(tmp_path / 'own.pth')
    assert 'missing' not in str(error.value) and 'unexpected' not in str(error.value)
    assert 'stem.conv.weight (32, 48, 3, 3) for (16, 48, 3, 3)' in str(error.value)
    assert f'The file holds arch={dict(TINY, width=0.5, v2=False)!r}' in str(error.value)


def test_file_of_a_backbone_that_ends_early_is_not_told_to_be_an_architecture(tmp_path):
    torch.save(TResNet(TINY, out_indices=(2,)).state_dict(), tmp_path / 'own.pth')
    with pytest.raises(ValueError, match='20 missing: layer4.0.') as error:
        initialised(tmp_path / 'own.pth')
    assert 'The file holds the stages layers=(1, 2, 1) alone' in str(error.value)
    assert f'take a whole file of arch={TINY!r}' in str(error.value) and 'set arch' not in str(error.value)


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_refusal_names_the_published_architecture_of_the_file(tmp_path, name):
    with torch.device('meta'):
        shapes = {key: value.shape for key, value in TResNet(name).state_dict().items()}
    # one element seen under the full shape, so that the file of XL stays small
    torch.save({key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}, tmp_path / 'own.pth')
    with pytest.raises(ValueError, match=f"The file holds arch='{name}': set arch so"):
        initialised(tmp_path / 'own.pth')


def test_incomplete_and_foreign_files_are_refused(tmp_path):
    state = tiny().state_dict()
    del state['layer4.0.conv3.conv.weight'], state['layer1.0.se.fc1.bias']
    torch.save(state, tmp_path / 'incomplete.pth')
    with pytest.raises(ValueError, match='2 missing: layer1.0.se.fc1.bias, layer4.0.conv3.conv.weight. The arch'):
        initialised(tmp_path / 'incomplete.pth')
    torch.save({'conv1.weight': torch.zeros(64, 3, 7, 7)}, tmp_path / 'resnet.pth')
    with pytest.raises(ValueError, match='resnet.pth.* holds no TResNet: none of stem.* begin with conv1.weight'):
        initialised(tmp_path / 'resnet.pth')
    torch.save([torch.zeros(1)], tmp_path / 'list.pth')
    with pytest.raises(ValueError, match='list.pth.* holds a list'):
        initialised(tmp_path / 'list.pth')


@pytest.mark.parametrize('arch', ['m', TINY])
def test_missing_file_says_where_weights_come_from(tmp_path, arch):
    path = tmp_path / 'tresnet.pth'
    with pytest.raises(FileNotFoundError) as error:
        initialised(path, arch)
    message = str(error.value)
    assert f"no file '{path}'" in message
    assert 'tresnet_m.miil_in21k' in message and 'https://huggingface.co/timm/' in message
    assert ('tresnet_xl.miil_in1k' in message) == (arch is TINY)
    assert 'https://github.com/Alibaba-MIIL/ASL' in message
    assert '--cfg-options model.backbone.init_cfg=None)' in message


def test_missing_file_of_a_frozen_backbone_says_what_else_training_from_scratch_needs(tmp_path):
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'tresnet.pth'))
    model = TResNet(TINY, frozen_stages=1, norm_eval=True, init_cfg=init_cfg)
    with pytest.raises(FileNotFoundError) as error:
        model.init_weights()
    options = ('init_cfg=None', 'frozen_stages=-1', 'norm_eval=False')
    assert f'--cfg-options {" ".join(f"model.backbone.{option}" for option in options)})' in str(error.value)


class _Malice:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_pickle_that_would_run_code_is_refused(tmp_path):
    marker = tmp_path / 'marker'
    state = tiny().state_dict()
    for name, content in (
        ('extra.pth', dict(model=state, num_classes=_Malice(marker))),
        ('weight.pth', dict(model=dict(state, **{'stem.conv.weight': _Malice(marker)}))),
    ):
        torch.save(content, tmp_path / name)
        with pytest.raises(ValueError, match=f'{name}.* can run code'):
            initialised(tmp_path / name)
    (tmp_path / 'plain.pth').write_bytes(pickle.dumps(dict(model=_Malice(marker))))
    with pytest.raises(ValueError, match='plain.pth.* can run code'):
        initialised(tmp_path / 'plain.pth')
    assert not marker.exists()
    pickle.loads((tmp_path / 'plain.pth').read_bytes())
    assert marker.exists()  # it would have


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2])
def test_frozen_stages_do_not_move(frozen_stages):
    model = tiny(frozen_stages=frozen_stages).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for step in range(2):
        optimizer.zero_grad()
        sum(f.square().mean() for f in model(images(2, 3, 64, 64, seed=step))).backward()
        optimizer.step()
    frozen = ('stem.', 'layer1.', 'layer2.')[: frozen_stages + 1]
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) == key.startswith(frozen or '-'), key
    assert all(p.requires_grad != name.startswith(frozen or '-') for name, p in model.named_parameters())


def test_norm_eval_keeps_statistics_and_trains_weights():
    model = tiny(norm_eval=True)
    assert model.train() is model and model.training
    before = {key: value.clone() for key, value in model.state_dict().items()}
    sum(f.square().mean() for f in model(images(2, 3, 64, 64))).backward()
    moved = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    assert moved == []
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for name, p in model.named_parameters() if 'norm' in name)
    assert model.eval().train().stem.norm.training is False
    free = tiny().train()
    free(images(2, 3, 64, 64))
    assert not torch.equal(free.stem.norm.running_mean, before['stem.norm.running_mean'])


def test_norm_cfg_reaches_every_norm():
    model = TResNet(TINY, norm_cfg=dict(type='SyncBN', requires_grad=False, momentum=0.03))
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 1 + 3 * 2 + 2 * 3 + 3
    for norm in norms:
        assert isinstance(norm, nn.SyncBatchNorm) and norm.momentum == 0.03 and not norm.weight.requires_grad


@pytest.mark.parametrize('frozen_stages', [-1, 1])
def test_checkpointed_blocks_give_equal_features_and_gradients(frozen_stages):
    results = []
    for with_cp in (False, True):
        model = tiny(with_cp=with_cp, frozen_stages=frozen_stages).train()
        features = model(images(2, 3, 64, 64))
        sum(f.square().mean() for f in features).backward()
        results.append((features, {n: p.grad for n, p in model.named_parameters()}))
    (features, gradients), (features_cp, gradients_cp) = results
    assert all(torch.equal(a, b) for a, b in zip(features, features_cp, strict=True))
    assert gradients.keys() == gradients_cp.keys()
    for name, gradient in gradients.items():
        if gradient is None:
            assert gradients_cp[name] is None and frozen_stages == 1
        else:
            torch.testing.assert_close(gradients_cp[name], gradient)


def bytes_kept(model, x):
    """What a forward pass has allocated and not given back at its end, saved for the backward pass or returned."""
    model(x)  # BN and oneDNN allocate for good in their first call
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        features = model(x)
    kept = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
    assert kept >= sum(f.nbytes for f in features)
    return kept


def test_checkpointing_halves_the_memory_of_activations():
    x = images(2, 3, 96, 96)
    kept, kept_cp = (bytes_kept(TResNet('m', with_cp=with_cp).train(), x) for with_cp in (False, True))
    assert kept_cp <= kept / 2
    model = TResNet('m').eval()
    with torch.no_grad():
        assert bytes_kept(model, x) == sum(f.nbytes for f in model(x))  # the count sees what was freed


# ----------------------------------------------------------------------------------------------------------- deployment


def test_channels_last_is_kept_and_changes_no_value():
    model = tiny().eval()
    x = images(2, 3, 64, 96)
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    features = model(x.to(memory_format=torch.channels_last))
    assert all(f.is_contiguous(memory_format=torch.channels_last) for f in features)
    assert_same_features(features, expected)


def test_channels_last_changes_neither_values_nor_gradients_nor_the_layout_of_features(tmp_path):
    torch.save(tiny().state_dict(), tmp_path / 'weights.pth')
    x, features, gradients = images(2, 3, 64, 96).double(), [], []
    for channels_last in (False, True):
        weights = dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))
        model = tiny(channels_last=channels_last, init_cfg=weights)
        model.init_weights()
        model.double()
        inputs = []
        for conv in (m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)):
            assert conv.weight.is_contiguous(memory_format=torch.channels_last) == channels_last
            conv.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        features.append(model(x))
        assert all(i.is_contiguous(memory_format=torch.channels_last) == channels_last for i in inputs)
        assert all(feature.is_contiguous() for feature in features[-1])
        sum(feature.square().sum() for feature in features[-1]).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert_same_features(*features, atol=1e-12)
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12 * expected.abs().max().item() + 1e-15)


def test_autocast_and_half_weights():
    model = tiny()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        features = model(images(2, 3, 64, 64))
    assert [f.dtype for f in features] == [torch.bfloat16] * 4
    sum(f.float().square().mean() for f in features).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    x = images(1, 3, 64, 64)
    expected = model.eval()(x)
    halved = model.bfloat16()(x.bfloat16())
    for a, b in zip(halved, expected, strict=True):
        assert a.dtype == torch.bfloat16
        assert F.cosine_similarity(a.float().flatten(), b.flatten(), dim=0) > 0.999


def test_compiles_without_graph_break():
    model = tiny().eval()
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    for size in ((64, 64), (96, 160)):
        x = images(1, 3, *size)
        with torch.no_grad():
            assert_same_features(compiled(x), model(x))


def test_onnx_agrees_at_other_batches_and_sizes(tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    model = tiny().eval()
    path = tmp_path / 'tresnet.onnx'
    torch.onnx.export(
        model,
        (images(2, 3, 96, 128),),
        path,
        input_names=['image'],
        output_names=['stride4', 'stride8', 'stride16', 'stride32'],
        dynamic_shapes=({0: 'batch', 2: 'height', 3: 'width'},),
        dynamo=True,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    assert session.get_inputs()[0].shape == ['batch', 3, 'height', 'width']
    for shape in ((2, 3, 96, 128), (1, 3, 32, 32), (3, 3, 160, 224)):
        x = images(*shape)
        with torch.no_grad():
            expected = model(x)
        assert_same_features([torch.from_numpy(f) for f in session.run(None, {'image': x.numpy()})], expected)


# ------------------------------------------------------------------------------------------------------------ converter


def test_converter_writes_our_layout(tmp_path):
    source = tiny(TINY_V2)
    official_file(tmp_path / 'official.pth', source)
    command = [sys.executable, CONVERTER, tmp_path / 'official.pth', tmp_path / 'own.pth']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '(official layout)' in done.stdout and 'left out: head.fc.bias, head.fc.weight' in done.stdout
    written = torch.load(tmp_path / 'own.pth', weights_only=True)
    assert written['meta'] == dict(arch=dict(layers=(1, 1, 1, 1), width=0.25, v2=True), source='official.pth')
    assert written['state_dict'].keys() == source.state_dict().keys()
    model = initialised(tmp_path / 'own.pth', TINY_V2)
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        assert_same_features(model(x), source.eval()(x), atol=1e-5)


def test_converter_writes_safetensors_and_takes_a_prefix(tmp_path, monkeypatch):
    source = tiny()
    torch.save({f'backbone.{key}': value for key, value in source.state_dict().items()}, tmp_path / 'detector.pth')
    dst = tmp_path / 'own.safetensors'
    monkeypatch.setattr(sys, 'argv', ['tresnet.py', str(tmp_path / 'detector.pth'), str(dst), '--prefix', 'backbone.'])
    runpy.run_path(CONVERTER, run_name='__main__')
    written = load_file(dst)
    assert written.keys() == source.state_dict().keys()
    assert all(torch.equal(value, written[key]) for key, value in source.state_dict().items())


def test_converter_makes_the_folder_it_writes_into(tmp_path, monkeypatch, capsys):
    torch.save(tiny().state_dict(), tmp_path / 'own.pth')
    for dst in ('a/b.pth', 'a/c/b.safetensors'):
        monkeypatch.setattr(sys, 'argv', ['tresnet.py', str(tmp_path / 'own.pth'), str(tmp_path / dst)])
        runpy.run_path(CONVERTER, run_name='__main__')
        assert (tmp_path / dst).is_file()
    monkeypatch.setattr(sys, 'argv', ['tresnet.py', str(tmp_path / 'own.pth'), str(tmp_path / 'own.pth/b.pth')])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(CONVERTER, run_name='__main__')
    assert exit_.value.code == 1 and str(tmp_path / 'own.pth') in capsys.readouterr().err


def test_converter_names_a_backbone_that_ends_early(tmp_path, monkeypatch, capsys):
    torch.save(TResNet(TINY, out_indices=(2,)).state_dict(), tmp_path / 'own.pth')
    monkeypatch.setattr(sys, 'argv', ['tresnet.py', str(tmp_path / 'own.pth'), str(tmp_path / 'b.pth')])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(CONVERTER, run_name='__main__')
    assert exit_.value.code == 1
    assert 'The file holds the stages layers=(1, 2, 1) alone' in capsys.readouterr().err


@pytest.mark.parametrize('bottleneck', [None, 6])
def test_converter_writes_the_authors_classifiers_whole(tmp_path, monkeypatch, capsys, bottleneck):
    """The names of the head in the official code: head.fc, with two layers behind one another for Open Images."""

    def classifier():
        head = dict(type='MultiLabelLinearClsHead', num_classes=2, in_channels=512, bottleneck_features=bottleneck)
        return randomise(ImageClassifier(backbone=dict(type='TResNet', arch=TINY), head=head)).eval()

    source = classifier()
    source.head.init_weights()
    layers = ['fc'] if bottleneck is None else ['fc.embedding_generator.0', 'fc.FC']
    state = official_layout(source.backbone.state_dict())
    own = source.head.state_dict()
    state |= {f'head.{layer}.{name}': own[f'{layer}.{name}'] for layer in layers for name in ('weight', 'bias')}
    content = dict(model=state, num_classes=2, idx_to_class={'1': 'dog', '0': 'cat'})
    torch.save(content, tmp_path / 'official.pth')
    monkeypatch.setattr(
        sys, 'argv', ['tresnet.py', str(tmp_path / 'official.pth'), str(tmp_path / 'own.pth'), '--head']
    )
    runpy.run_path(CONVERTER, run_name='__main__')
    assert 'left out' not in capsys.readouterr().out
    written = read_checkpoint(tmp_path / 'own.pth')
    assert written['meta']['dataset_meta'] == dict(classes=('cat', 'dog'))
    model = classifier()
    load_all_weights(model, written, tmp_path / 'own.pth')
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x, mode='tensor'), source(x, mode='tensor'), rtol=1e-4, atol=1e-5)


def test_converter_wants_a_classifier_for_a_whole_one(tmp_path, monkeypatch, capsys):
    torch.save(official_layout(tiny().state_dict()), tmp_path / 'official.pth')
    for dst, status, message in (('own.pth', 1, 'begins with head.fc.'), ('own.safetensors', 2, 'is written as .pth')):
        argv = ['tresnet.py', str(tmp_path / 'official.pth'), str(tmp_path / dst), '--head']
        monkeypatch.setattr(sys, 'argv', argv)
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(CONVERTER, run_name='__main__')
        assert exit_.value.code == status and message in capsys.readouterr().err
        assert not (tmp_path / dst).exists()


@pytest.mark.parametrize(
    ('dst', 'options', 'status', 'message'),
    [
        ('own.pth', ['--arch', 'm'], 1, "does not fit TResNet(arch='m')"),
        ('official.pth', [], 2, "official.pth' exists"),
        ('own.onnx', [], 2, 'ends in .pth or .safetensors'),
    ],
)
def test_converter_refuses(tmp_path, monkeypatch, capsys, dst, options, status, message):
    official_file(tmp_path / 'official.pth', tiny())
    before = (tmp_path / 'official.pth').read_bytes()
    monkeypatch.setattr(sys, 'argv', ['tresnet.py', str(tmp_path / 'official.pth'), str(tmp_path / dst), *options])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(CONVERTER, run_name='__main__')
    assert exit_.value.code == status
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['official.pth']
    assert (tmp_path / 'official.pth').read_bytes() == before
