import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.analysis import FlopAnalyzer, get_model_complexity_info
from mmengine.model import PretrainedInit
from torch import nn

from asl_mmdet.models.ofa595 import OFA595

# in, out, kernel, stride, mid, activation, squeeze-and-excitation; the published description.
TABLE = """
24 24 3 1 24 relu no
24 32 3 2 72 relu no
32 32 5 1 128 relu no
32 32 3 1 96 relu no
32 48 5 2 128 relu yes
48 48 5 1 192 relu yes
48 48 3 1 288 relu yes
48 48 5 1 144 relu yes
48 96 7 2 288 hswish no
96 96 5 1 576 hswish no
96 96 3 1 288 hswish no
96 96 5 1 384 hswish no
96 136 3 1 576 hswish yes
136 136 5 1 816 hswish yes
136 136 7 1 816 hswish yes
136 136 3 1 544 hswish yes
136 192 3 2 816 hswish yes
192 192 3 1 1152 hswish yes
192 192 5 1 1152 hswish yes
192 192 3 1 576 hswish yes
"""
ROWS = [(*map(int, row.split()[:5]), *row.split()[5:]) for row in TABLE.strip().splitlines()]
SQUEEZED = {128: 32, 192: 48, 288: 72, 144: 40, 576: 144, 816: 208, 544: 136, 1152: 288}
AUTHORS_BLOCK = 'blocks.{}.mobile_inverted_conv'


def authors_state(block=AUTHORS_BLOCK):
    """Random weights under the authors' names."""
    generator = torch.Generator().manual_seed(0)
    state = {}

    def conv_bn(name, out_channels, in_channels, kernel):
        fan_in = in_channels * kernel**2
        state[f'{name}.conv.weight'] = (
            torch.randn(out_channels, in_channels, kernel, kernel, generator=generator) * (2 / fan_in) ** 0.5
        )
        for key, low, high in (
            ('weight', 0.5, 1.5),
            ('bias', -0.5, 0.5),
            ('running_mean', -0.5, 0.5),
            ('running_var', 0.5, 1.5),
        ):
            state[f'{name}.bn.{key}'] = torch.empty(out_channels).uniform_(low, high, generator=generator)
        state[f'{name}.bn.num_batches_tracked'] = torch.tensor(7)

    conv_bn('first_conv', 24, 3, 3)
    for i, (inp, out, kernel, _, mid, _, se) in enumerate(ROWS):
        if i:
            conv_bn(block.format(i) + '.inverted_bottleneck', mid, inp, 1)
        conv_bn(block.format(i) + '.depth_conv', mid, 1, kernel)
        if se == 'yes':
            for name, shape in (('reduce', (SQUEEZED[mid], mid, 1, 1)), ('expand', (mid, SQUEEZED[mid], 1, 1))):
                key = f'{block.format(i)}.depth_conv.se.fc.{name}'
                state[f'{key}.weight'] = torch.randn(shape, generator=generator) / shape[1] ** 0.5
                state[f'{key}.bias'] = torch.randn(shape[0], generator=generator)
        conv_bn(block.format(i) + '.point_linear', out, mid, 1)
    conv_bn('final_expand_layer', 1152, 192, 1)
    state['feature_mix_layer.conv.weight'] = torch.randn(1536, 1152, 1, 1, generator=generator) / 1152**0.5
    state['classifier.linear.weight'] = torch.zeros(1000, 1536)
    state['classifier.linear.bias'] = torch.zeros(1000)
    return state


def authors_forward(state, x):
    """The table, one line after the other: output of every block, then the mixed feature."""

    def conv_bn(name, x, stride=1, groups=1):
        weight = state[f'{name}.conv.weight']
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        return F.batch_norm(
            x, *(state[f'{name}.bn.{key}'] for key in ('running_mean', 'running_var', 'weight', 'bias'))
        )

    def hswish(x):
        return x * F.relu6(x + 3) / 6

    x = hswish(conv_bn('first_conv', x, stride=2))
    outputs = []
    for i, (inp, out, _, stride, mid, act, se) in enumerate(ROWS):
        act = hswish if act == 'hswish' else F.relu
        name = AUTHORS_BLOCK.format(i)
        y = act(conv_bn(f'{name}.inverted_bottleneck', x)) if i else x
        y = act(conv_bn(f'{name}.depth_conv', y, stride, groups=mid))
        if se == 'yes':
            fc = {
                key: state[f'{name}.depth_conv.se.fc.{key}']
                for key in ('reduce.weight', 'reduce.bias', 'expand.weight', 'expand.bias')
            }
            gate = F.relu(F.conv2d(y.mean((2, 3), keepdim=True), fc['reduce.weight'], fc['reduce.bias']))
            y = y * (F.relu6(F.conv2d(gate, fc['expand.weight'], fc['expand.bias']) + 3) / 6)
        y = conv_bn(f'{name}.point_linear', y)
        x = x + y if stride == 1 and inp == out else y
        outputs.append(x)
    pooled = hswish(conv_bn('final_expand_layer', x)).mean((2, 3), keepdim=True)
    return outputs, hswish(F.conv2d(pooled, state['feature_mix_layer.conv.weight']))


def checkpoint(tmp_path, state):
    torch.save(dict(state_dict=state), tmp_path / 'init')
    return dict(type='Pretrained', checkpoint=str(tmp_path / 'init'))


@pytest.mark.parametrize('block', [AUTHORS_BLOCK, 'blocks.{}.conv'])
def test_authors_weights_give_the_features_of_the_table(tmp_path, block):
    model = OFA595(out_indices=range(6), init_cfg=checkpoint(tmp_path, authors_state(block)))
    model.init_weights()
    x = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    blocks, mixed = authors_forward(authors_state(), x)
    with torch.no_grad():
        features = model.eval()(x)
    assert [tuple(f.shape) for f in features] == [
        (2, 24, 32, 48),
        (2, 32, 16, 24),
        (2, 48, 8, 12),
        (2, 136, 4, 6),
        (2, 192, 2, 3),
        (2, 1536, 1, 1),
    ]
    for feature, expected in zip(features, [*(blocks[i] for i in (0, 3, 7, 15, 19)), mixed]):
        torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = MODELS.build(dict(type='OFA595'))
        self.fc = nn.Linear(1536, 1000)

    def forward(self, x):
        return self.fc(self.backbone(x)[-1].flatten(1))


def test_published_size_and_cost():
    model = Classifier().eval()
    info = get_model_complexity_info(model, (3, 236, 236), show_table=False, show_arch=False)
    assert info['params'] == 9_135_928  # published: 9.1 M
    count = FlopAnalyzer(model, torch.zeros(1, 3, 236, 236)).by_operator()
    assert round((count['conv'] + count['linear']) / 1e6) == 595
    # What mmengine counts beyond multiply-adds is normalisation and pooling.
    assert info['flops'] - count['conv'] - count['linear'] == count['batch_norm'] + count['adaptive_avg_pool2d']


def test_stages_that_nothing_asks_for_are_not_built():
    model = OFA595(out_indices=(1, 3))
    assert [f.shape[1] for f in model.eval()(torch.rand(1, 3, 32, 32))] == [32, 136]
    assert not any(name.startswith(('stage5', 'stage6')) for name in model.state_dict())


@pytest.mark.parametrize('frozen_stages, frozen', [(-1, []), (0, ['stem']), (2, ['stem', 'stage1', 'stage2'])])
def test_frozen_stages(frozen_stages, frozen):
    model = OFA595(frozen_stages=frozen_stages).train()
    for name, module in model.named_children():
        assert all(p.requires_grad != (name in frozen) for p in module.parameters())
        assert all(m.training != (name in frozen) for m in module.modules() if isinstance(m, nn.BatchNorm2d))


def test_everything_frozen_and_norm_eval():
    model = OFA595(frozen_stages=6)
    assert not any(p.requires_grad for p in model.parameters())
    model = OFA595(norm_eval=True).train()
    assert model.training and not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_initialisation_is_kaiming_by_outputs():
    model = OFA595()
    model.init_weights()
    weight = model.stage6.expand.conv.weight
    assert weight.std().item() == pytest.approx((2 / weight.shape[0]) ** 0.5, rel=0.02)
    assert all((m.weight == 1).all() for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_own_checkpoints_load_with_a_prefix(tmp_path):
    source = OFA595()
    source.init_weights()
    init_cfg = checkpoint(tmp_path, {f'backbone.{k}': v for k, v in source.state_dict().items()})
    model = OFA595(init_cfg=dict(init_cfg, prefix='backbone.'))
    model.init_weights()
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_what_is_no_part_of_the_backbone_is_named(tmp_path, monkeypatch):
    messages = []
    monkeypatch.setattr('asl_mmdet.models.ofa595.print_log', lambda message, logger: messages.append(message))
    whole = authors_state()
    for state in (whole, {key: value for key, value in whole.items() if not key.startswith('classifier')}):
        OFA595(init_cfg=checkpoint(tmp_path, state)).init_weights()
    loaded = f"OFA595: loaded '{tmp_path / 'init'}'"
    assert messages == [f'{loaded}; left out: classifier.linear.bias, classifier.linear.weight', loaded]


def test_detector_stages_load_from_a_whole_file(tmp_path):
    model = OFA595(out_indices=(1, 2, 3, 4), init_cfg=checkpoint(tmp_path, authors_state()))
    model.init_weights()
    assert torch.equal(
        model.stage1[0].depthwise_conv.conv.weight, authors_state()[f'{AUTHORS_BLOCK.format(0)}.depth_conv.conv.weight']
    )


@pytest.mark.parametrize(
    'form', [lambda cfg: [dict(type='Kaiming', layer='Conv2d'), cfg], lambda cfg: dict(cfg, type=PretrainedInit)]
)
def test_every_form_of_pretrained_loads(tmp_path, form):
    model = OFA595(init_cfg=form(checkpoint(tmp_path, authors_state())))
    model.init_weights()
    assert torch.equal(model.stem.conv.weight, authors_state()['first_conv.conv.weight'])


def test_a_file_that_does_not_fit_is_refused(tmp_path):
    state = authors_state()
    del state['blocks.9.mobile_inverted_conv.depth_conv.bn.bias']
    model = OFA595(init_cfg=checkpoint(tmp_path, state))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=r'init. does not fit OFA595: 1 of \d+ .*, stage4.1.depthwise_conv.bn.bias'):
        model.init_weights()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    with pytest.raises(ValueError, match="under the prefix 'backbone.'"):
        OFA595(init_cfg=dict(checkpoint(tmp_path, authors_state()), prefix='backbone')).init_weights()
    with pytest.raises(FileNotFoundError, match='nothing.pth'):
        OFA595(init_cfg=dict(type='Pretrained', checkpoint='nothing.pth')).init_weights()


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(out_indices=()), r'out_indices=\(\)'),
        (dict(out_indices=(6,)), r'out_indices=\(6,\)'),
        (dict(frozen_stages=7), r'frozen_stages=7 .* \[-1, 6\]'),
        (dict(out_indices=(1,), frozen_stages=3), r'frozen_stages=3 .* \[-1, 2\]'),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        OFA595(**kwargs)
