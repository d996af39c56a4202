import pytest
import torch
from mmdet.models import ResNet, RetinaSepBNHead
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from asl_mmdet.fast_inference import fast_inference
from tests.conftest import ROOT

CONFIGS = dict(
    classifier='multi_label/tresnet-narrow_asl_shapes-64.py', detector='fcos/fcos_tresnet-narrow_fpn_asl_shapes.py'
)


def built(kind):
    """A model whose norms have seen data; at their initial values, folding them wrongly could go unseen."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(Config.fromfile(ROOT / 'configs' / CONFIGS[kind]).model)
    return with_data_seen(model)


def with_data_seen(model):
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.1)
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    model.eval()
    return model


def outputs(model, x):
    """Features of the backbone, and what the head makes of them, as a flat list."""
    features, head = model.backbone(x), model(x)
    tensors = [*features]
    for found in head if isinstance(head, tuple) else (head,):
        tensors.extend(found if isinstance(found, (list, tuple)) else [found])
    return tensors


@pytest.mark.parametrize(
    ('kind', 'compile'),
    [
        ('classifier', False),
        ('detector', False),
        ('classifier', True),
        pytest.param('detector', True, marks=pytest.mark.slow),
    ],
)
def test_outputs_equal_those_of_the_plain_model(kind, compile):
    model = built(kind)
    x = torch.rand((2, 3, 64, 96), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, expected_at_another_size = outputs(model, x), model.backbone(x[..., :64])
        fast = fast_inference(model, compile)
        assert fast is model
        # Sizes that were seen before do not count, which would be compiled for any size, and weights not packed.
        with torch._dynamo.config.patch(automatic_dynamic_shapes=False):
            actual = outputs(fast, x)
    assert len(actual) == len(expected) > 1
    for a, b in zip(actual, expected, strict=True):
        scale = b.abs().max()
        assert scale > 1e-3
        torch.testing.assert_close(a / scale, b / scale, rtol=0, atol=1e-5)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.backbone.modules())
    assert (model.backbone._compiled_call_impl is not None) == compile
    convolutions = [module for module in model.backbone.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        weights = [convolution.weight.clone() for convolution in convolutions]
        for convolution in convolutions:
            convolution.weight.zero_()
        without_weights = fast.backbone(x)
        for convolution, weight in zip(convolutions, weights, strict=True):
            convolution.weight.copy_(weight)
        at_another_size = fast.backbone(x[..., :64])
    # Compiled weights are constants of the code, which packs them once.
    assert torch.equal(without_weights[0], actual[0]) == compile
    for a, b in zip(at_another_size, expected_at_another_size, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * b.abs().max().item())


def test_a_backbone_alone_and_in_training_mode():
    backbone = built('classifier').backbone
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = backbone(x)[-1]
        actual = fast_inference(backbone.train())(x)[-1]
    assert not backbone.training
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_a_convolution_of_all_levels_is_folded_with_the_norm_of_each():
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        head = RetinaSepBNHead(
            num_classes=4, num_ins=3, in_channels=8, feat_channels=8, stacked_convs=2, norm_cfg=dict(type='BN')
        )
    nn.init.normal_(head.retina_cls.weight)
    with_data_seen(head)
    features = [torch.randn(1, 8, size, size) for size in (16, 8, 4)]
    with torch.no_grad():
        expected = head(features)[0]
        actual = fast_inference(head)(features)[0]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in head.modules())
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * b.abs().max().item())


def small_resnet(**kwargs):
    torch.manual_seed(0)
    model = ResNet(50, base_channels=8, **kwargs)
    for name, parameter in model.named_parameters():
        if 'conv_offset' in name:
            nn.init.normal_(parameter, 0, 0.1)
    return with_data_seen(model)


@pytest.mark.parametrize('kind', ['DCN', 'DCNv2'])
def test_deformable_convolutions_keep_their_results(kind):
    model = small_resnet(dcn=dict(type=kind, deform_groups=1), stage_with_dcn=(False, True, True, True))
    x = torch.rand(1, 3, 128, 160)
    with torch.no_grad():
        expected = model(x)
        actual = fast_inference(model)(x)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * b.abs().max().item())


def test_weights_that_are_standardised_are_refused():
    model = small_resnet(conv_cfg=dict(type='ConvWS'))
    with pytest.raises(ValueError, match='conv1 is a ConvWS2d, which standardises its weights'):
        fast_inference(model)
