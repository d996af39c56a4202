import os
import sys

import pytest
import torch

from asl_mmdet.models import scale_gradient as module
from asl_mmdet.models.scale_gradient import scale_gradient
from tests.conftest import ROOT, run_tool

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


KERNEL = """
import torch
from asl_mmdet.models import scale_gradient as module
kernel = module._triton_kernel()
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    for factor in {factors}:
        grad = torch.linspace(-1, 1, 5001).to(dtype) * 1e-2
        expected = (grad.float() * factor).to(dtype)
        kernel[(-(-5001 // module.BLOCK),)](grad, torch.tensor(factor), 5001, BLOCK=module.BLOCK)
        # The interpreter cuts bfloat16 off, a GPU rounds it.
        torch.testing.assert_close(grad, expected, rtol=8e-3 if dtype == torch.bfloat16 else 0, atol=0)
print('equal')
"""


def test_the_kernel_of_triton_computes_the_same_in_its_interpreter(tmp_path):
    pytest.importorskip('triton')
    script = tmp_path / 'kernel.py'
    script.write_text(KERNEL.format(factors=FACTORS))
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    done = run_tool(script, env=dict(TRITON_INTERPRET='1', PYTHONPATH=path))
    assert done.returncode == 0 and done.stdout.endswith('equal\n'), done.stdout


def test_without_triton_there_is_no_kernel(monkeypatch):
    monkeypatch.setitem(sys.modules, 'triton', None)
    assert module._triton_kernel.__wrapped__() is None
