"""FastInferenceHook on a real Runner that tests."""

import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from asl_mmdet.fast_inference import fast_inference
from asl_mmdet.hooks import FastInferenceHook
from tests.conftest import ROOT, run_tool

NAME = 'configs/multi_label/tresnet-narrow_asl_shapes.py'


def options(shapes, tmp_path):
    return {
        'work_dir': str(tmp_path),
        'test_dataloader.dataset.data_root': f'{shapes}/',
        'test_dataloader.num_workers': 0,
        'test_dataloader.persistent_workers': False,
    }


def has_norms(model):
    return any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_a_folded_copy_is_tested_and_the_weights_of_ema_change_back(shapes, tmp_path, monkeypatch):
    asked, tested = [], []

    def folds(model, compile):
        asked.append(compile)
        return fast_inference(model)

    # The package has a function of the module's name.
    monkeypatch.setattr(sys.modules['asl_mmdet.hooks.fast_inference_hook'], 'fast_inference', folds)
    cfg = Config.fromfile(ROOT / NAME)
    cfg.merge_from_dict(options(shapes, tmp_path))
    assert cfg.custom_hooks[0].type == 'RawAndEMAHook'
    runner = Runner.from_cfg(cfg)
    model = runner.model
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_var.uniform_(0.5, 1.5)
    plain = runner.test()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    forward = model.backbone.__class__.forward
    monkeypatch.setattr(
        model.backbone.__class__, 'forward', lambda self, x: tested.append(has_norms(self)) or forward(self, x)
    )
    runner.register_hook(FastInferenceHook())
    fast = runner.test()
    assert asked == [True] and set(tested) == {False}
    assert fast == pytest.approx(plain, abs=1e-6, nan_ok=True)
    assert runner.model is model and has_norms(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
def test_the_tool_compiles_and_measures_the_same(shapes, tmp_path):
    cfg = Config.fromfile(ROOT / NAME)
    torch.manual_seed(0)
    runner = Runner.from_cfg(Config({**cfg, **dict(work_dir=str(tmp_path))}))
    torch.save(dict(state_dict=runner.model.state_dict(), meta={}), tmp_path / 'random.pth')
    given = [f'{key}={value}' for key, value in options(shapes, tmp_path).items()]
    outputs = []
    for fast in ([], ['--fast']):
        done = run_tool('tools/test.py', NAME, tmp_path / 'random.pth', *fast, '--cfg-options', *given)
        assert done.returncode == 0, done.stdout
        outputs.append([line for line in done.stdout.splitlines() if line.startswith('|')])
    assert outputs[0] == outputs[1] and outputs[0]
