import copy

import pytest
import torch
import torch.nn.utils.prune
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.ops import RoIAlign
from torch import nn

from asl_mmdet import winograd
from asl_mmdet.fast_inference import fast_inference
from asl_mmdet.winograd import LEAST_TILES, WinogradConv2d, fits, transformed
from tests.test_fast_inference import with_data_seen


def convolution(in_channels=64, out_channels=64, kernel_size=3, padding=1, **kwargs):
    torch.manual_seed(0)
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, **kwargs)


def in_float64(conv, x):
    bias = None if conv.bias is None else conv.bias.double()
    with torch.no_grad():
        return nn.functional.conv2d(x.double(), conv.weight.double(), bias, padding=1)


@settings(deadline=None, max_examples=25)
@given(
    n=st.integers(1, 5),
    height=st.integers(1, 33),
    width=st.integers(1, 33),
    channels=st.sampled_from([(64, 64), (64, 96), (80, 64), (128, 64)]),
    bias=st.booleans(),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    at_once=st.sampled_from([1, 1 << 17, winograd.AT_ONCE]),
)
def test_outputs_are_those_of_a_convolution_in_float64(n, height, width, channels, bias, layout, at_once):
    conv = convolution(*channels, bias=bias)
    x = torch.randn(n, channels[0], height, width).contiguous(memory_format=layout)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, 'LEAST_TILES', 1)
        patch.setattr(winograd, 'AT_ONCE', at_once)
        actual = WinogradConv2d(conv)(x)
    expected = in_float64(conv, x)
    assert actual.dtype == torch.float32 and actual.shape == expected.shape
    assert actual.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=6e-6 * expected.abs().max().item())


@pytest.mark.parametrize('channels', [64, 256, 512])
def test_it_rounds_as_its_points_promise(channels):
    conv = convolution(channels, channels)
    x = torch.randn(2, channels, 28, 28)
    expected = in_float64(conv, x)
    with torch.no_grad():
        error = WinogradConv2d(conv)(x) - expected
    # At the usual points 0, 1, -1, 2 and -2 it is more.
    assert (error.square().mean() / expected.square().mean()).sqrt() < 1.5e-6


def test_weights_are_values_of_their_polynomial_at_the_points():
    # G w of one dimension: w0 + w1 p + w2 p^2 at each point, divided by the product of its distances to the others,
    # and w2 at infinity; an outer product of two such for weights that are one.
    row, column = torch.tensor([1.0, 2.0, -3.0]), torch.tensor([0.5, 0.0, 1.0])

    def values(w):
        found = []
        for i, p in enumerate(winograd.POINTS):
            product = 1.0
            for j, q in enumerate(winograd.POINTS):
                product *= 1.0 if i == j else p - q
            found.append((w[0] + w[1] * p + w[2] * p * p).item() / product)
        return torch.tensor([*found, w[2].item()])

    actual = transformed(torch.outer(row, column).expand(5, 7, 3, 3))
    assert actual.shape == (36, 7, 5)
    expected = torch.outer(values(row), values(column)).flatten()
    torch.testing.assert_close(actual, expected[:, None, None].expand(36, 7, 5))


def test_it_takes_convolutions_that_gain():
    assert fits(convolution())
    for conv in (
        convolution(stride=2),
        convolution(padding=0),
        convolution(padding=2, dilation=2),
        convolution(kernel_size=1, padding=0),
        convolution(groups=2),
        convolution(padding_mode='reflect'),
        convolution(in_channels=48),
        convolution(out_channels=72),
        convolution(dtype=torch.float64),
        convolution(device='meta'),
        nn.ConvTranspose2d(64, 64, 3, padding=1),
        WinogradConv2d(convolution()),
    ):
        assert not fits(conv), conv


def test_what_else_belongs_to_a_convolution_keeps_it():
    for name in ('register_forward_hook', 'register_forward_pre_hook'):
        getattr(hooked := convolution(), name)(lambda *args: None)
        assert not fits(hooked)
    replaced = convolution()
    replaced.forward = lambda x: x
    assert not fits(replaced)
    for change in (
        torch.nn.utils.weight_norm,
        torch.nn.utils.parametrizations.weight_norm,
        torch.nn.utils.spectral_norm,
    ):
        assert not fits(change(convolution()))
    assert not fits(torch.nn.utils.prune.l1_unstructured(convolution(), 'weight', 0.5))
    other_bias = convolution()
    other_bias.bias = nn.Parameter(other_bias.bias.bfloat16())
    assert not fits(other_bias)


def test_inputs_and_parameters_that_are_views():
    conv = convolution()
    conv.bias = nn.Parameter(torch.tensor([0.5]).expand(64))
    x = torch.randn(3, 64, 20, 24).contiguous(memory_format=torch.channels_last)[1:, :, 2:, :19]
    with torch.no_grad():
        actual = WinogradConv2d(conv)(x)
    torch.testing.assert_close(actual.double(), in_float64(conv, x), rtol=0, atol=1e-5)


def test_inputs_of_another_shape_are_told_as_by_a_convolution():
    ours = WinogradConv2d(convolution())
    with torch.no_grad():
        with pytest.raises(RuntimeError, match='expected input.* to have 64 channels, but got 72 channels'):
            ours(torch.randn(2, 72, 32, 32))
        assert ours(torch.randn(64, 64, 32)).shape == (64, 64, 32)
        assert ours(torch.randn(0, 64, 32, 32)).shape == (0, 64, 32, 32)


def test_as_many_tiles_go_at_once_as_fit_the_cache(monkeypatch):
    rows = []
    monkeypatch.setattr(torch, 'bmm', lambda a, b, bmm=torch.bmm: rows.append(a.shape[1]) or bmm(a, b))
    # 18 tiles a picture of 36 x 4 x 96 bytes.
    monkeypatch.setattr(winograd, 'AT_ONCE', 20 * 36 * 4 * 96)
    with torch.no_grad():
        WinogradConv2d(convolution(out_channels=96))(torch.randn(3, 64, 10, 21))
    assert rows == [18, 18, 18]


def test_what_it_does_not_suit_is_convolved_directly():
    conv, x = convolution(), torch.randn(2, 64, 16, 16)
    ours = WinogradConv2d(conv)
    assert LEAST_TILES == 16
    with torch.no_grad():
        for few, direct in ((torch.randn(1, 64, 9, 20), True), (x[:1], False), (x, False)):
            assert torch.equal(ours(few), conv(few)) == direct
        with torch.autocast('cpu'):
            assert ours(x).dtype == torch.bfloat16
            assert torch.equal(ours(x), conv(x))
        assert torch.equal(copy.deepcopy(ours).double()(x.double()), copy.deepcopy(conv).double()(x.double()))
    gradients = []
    for module in (ours, conv):
        z = x.clone().requires_grad_()
        module(z).square().sum().backward()
        gradients.append(z.grad)
    assert torch.equal(*gradients)


def test_parameters_stay_those_of_the_convolution():
    conv = convolution()
    ours = WinogradConv2d(conv.eval())
    assert ours.weight is conv.weight and ours.bias is conv.bias and not ours.training
    assert ours.state_dict().keys() == conv.state_dict().keys()
    x = torch.randn(2, 64, 16, 16)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(ours)(x), ours(x))


def test_threads_do_not_change_the_output():
    ours, x = WinogradConv2d(convolution()), torch.randn(3, 64, 21, 18)
    threads = torch.get_num_threads()
    found = []
    try:
        with torch.no_grad():
            for number in (1, 2):
                torch.set_num_threads(number)
                found.append(ours(x))
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def network():
    convs = convolution(), convolution()
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), convs[0], nn.BatchNorm2d(64), nn.LeakyReLU()
    )
    model.append(convs[1])
    return with_data_seen(model)


def test_compiled_inference_uses_it_at_any_size():
    model = network()
    pictures = [torch.rand(2, 3, size, size + 4) for size in (18, 26, 22)]
    with torch.no_grad():
        expected = [copy.deepcopy(model).double()(x.double()) for x in pictures]
        fast = fast_inference(model, compile=True)
        assert type(fast[3]) is type(fast[6]) is WinogradConv2d
        for x, y in zip(pictures, expected):
            torch.testing.assert_close(fast(x).double(), y, rtol=0, atol=5e-6 * y.abs().max().item())


def test_convolutions_of_the_head_are_replaced_too():
    model = nn.ModuleDict(
        dict(backbone=network(), head=nn.ModuleList([convolution(), convolution(kernel_size=1, padding=0)]))
    )
    fast_inference(model)
    assert type(model['head'][0]) is nn.Conv2d
    fast_inference(model, compile=True)
    assert [type(conv) for conv in model['head']] == [WinogradConv2d, nn.Conv2d]


def test_without_a_compiler_for_it_a_warning_says_so(monkeypatch):
    def broken():
        raise RuntimeError('no compiler\nof any kind')

    monkeypatch.setattr(winograd, 'compiled_transforms', broken)
    with pytest.warns(UserWarning, match=r'do without Winograd.*\(RuntimeError: no compiler\)') as warned:
        model = fast_inference(network(), compile=True)
    assert sum('Winograd' in str(warning.message) for warning in warned) == 1
    assert type(model[3]) is type(model[6]) is nn.Conv2d


def test_models_with_operations_of_mmcv_do_without():
    # These read what is channels last as if it were not.
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Identity()
            self.conv, self.pool = convolution(), RoIAlign(7, 1.0, 0)

        def forward(self, x):
            return self.pool(self.conv(x), torch.tensor([[0, 1.0, 2, 17, 15], [1, 3, 3, 9, 12]]))

    model, x = Pooled().eval(), torch.randn(2, 64, 20, 20)
    with torch.no_grad():
        expected = model(x)
        actual = fast_inference(model, compile=True)(x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
