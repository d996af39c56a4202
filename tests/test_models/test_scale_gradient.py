import sys

import pytest
import torch

from asl_mmdet.models import scale_gradient as module
from asl_mmdet.models.scale_gradient import scale_gradient

FACTORS = (1.0, 0.0, -2.5, 65536.0, 1e-3)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize('factor', FACTORS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_the_product_is_rounded_like_a_single_one(factor, dtype):
    grad = (torch.linspace(-1, 1, 999) ** 3 * 1e-2).to(dtype)
    expected = (grad.to(torch.promote_types(dtype, torch.float32)) * factor).to(dtype)
    version = grad._version
    scale_gradient(grad, torch.tensor(factor))
    torch.testing.assert_close(grad, expected, rtol=1e-6 if dtype == torch.float64 else 0, atol=0)
    assert grad._version == version


def test_a_factor_of_one_leaves_the_gradient_alone(monkeypatch):
    monkeypatch.setattr(torch.Tensor, 'mul_', None)
    grad = torch.ones(3)
    scale_gradient(grad, torch.tensor(1.0))
    assert grad.tolist() == [1, 1, 1]


def test_without_triton_there_is_no_kernel(monkeypatch):
    monkeypatch.setitem(sys.modules, 'triton', None)
    monkeypatch.delitem(sys.modules, 'asl_mmdet.models.triton_pass', raising=False)
    assert module._of_triton.__wrapped__() is None
