import mmdet.models  # noqa: F401  (registers the detector)
import pytest
import torch
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
        model = MODELS.build(Config.fromfile(ROOT / 'configs' / CONFIGS[kind]).model).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.1)
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
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
