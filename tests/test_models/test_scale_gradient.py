import sys
from types import SimpleNamespace

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


class OnAGpu(torch.Tensor):
    """A tensor that says that it lies on a GPU."""

    is_cuda, is_cpu = True, False

    @property
    def data(self):
        return self


@pytest.mark.parametrize('fault', [ImportError('no triton'), RuntimeError('0 active drivers')])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_without_a_triton_that_works_torch_multiplies(monkeypatch, dtype, fault):
    calls = []

    def fails(grad, factor):
        calls.append(grad)
        raise fault

    triton_pass = SimpleNamespace(scale_in_place=fails)
    monkeypatch.setitem(sys.modules, 'asl_mmdet.models.triton_pass', triton_pass)
    monkeypatch.setattr(module, '_FAULTS', [])
    for _ in range(2):
        grad = torch.tensor([1.0, -2.0], dtype=dtype).as_subclass(OnAGpu)
        scale_gradient(grad, torch.tensor(256.0))
        assert grad.tolist() == [256, -512]
    assert len(calls) == 1

    triton_pass.scale_in_place = lambda grad, factor: grad.fill_(7)
    monkeypatch.setattr(module, '_FAULTS', [])
    scale_gradient(grad, torch.tensor(256.0))
    assert grad.tolist() == [7, 7]


@pytest.mark.parametrize('grad', [torch.ones(2, dtype=torch.float64), torch.ones(3, 2).t()])
def test_what_the_kernel_cannot_read_is_multiplied_by_torch(monkeypatch, grad):
    monkeypatch.setitem(sys.modules, 'asl_mmdet.models.triton_pass', SimpleNamespace(scale_in_place=None))
    monkeypatch.setattr(module, '_FAULTS', [])
    grad = grad.as_subclass(OnAGpu)
    scale_gradient(grad, torch.tensor(3.0))
    assert (grad == 3).all() and module._FAULTS == []


def test_memory_that_runs_out_is_not_taken_for_a_missing_triton(monkeypatch):
    def fails(grad, factor):
        raise torch.OutOfMemoryError

    monkeypatch.setitem(sys.modules, 'asl_mmdet.models.triton_pass', SimpleNamespace(scale_in_place=fails))
    monkeypatch.setattr(module, '_FAULTS', [])
    with pytest.raises(torch.OutOfMemoryError):
        scale_gradient(torch.ones(2).as_subclass(OnAGpu), torch.tensor(2.0))
    assert module._FAULTS == []


def test_without_triton_the_module_of_its_kernels_is_no_fault_of_the_caller(monkeypatch):
    monkeypatch.setitem(sys.modules, 'triton', None)
    monkeypatch.delitem(sys.modules, 'asl_mmdet.models.triton_pass', raising=False)
    monkeypatch.setattr(module, '_FAULTS', [])
    grad = torch.ones(2).as_subclass(OnAGpu)
    scale_gradient(grad, torch.tensor(3.0))
    assert grad.tolist() == [3, 3] and 'triton' in module._FAULTS[0]
