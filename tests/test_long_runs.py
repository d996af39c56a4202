"""What shows over many iterations only, and over many runs: memory, and one seed."""

import sys
import textwrap

import numpy as np
import pytest
import torch
from mmengine.config import Config

from tests.conftest import ROOT, run_tool
from tests.test_tools import CLASSIFIER, CONFIG, classifier_on, on, weights

DETECTOR = pytest.param(CONFIG, on, marks=pytest.mark.slow)
TASKS = pytest.mark.parametrize('config, options_on', [DETECTOR, (CLASSIFIER, classifier_on)])


def resident_megabytes(config, options_on, shapes, work_dir, iterations, evaluations):
    """Of tools/train.py after each iteration, with the hooks of the config and of the tool.

    ``iterations`` are a multiple of 8, an epoch. It is evaluated and saved ``evaluations`` times.
    """
    (work_dir / 'resident.py').write_text(
        textwrap.dedent(f"""
        from mmdet.registry import HOOKS
        from mmengine.hooks import Hook

        @HOOKS.register_module()
        class ResidentMemory(Hook):
            def before_train(self, runner):
                self.pages = []

            def after_train_iter(self, runner, **kwargs):
                self.pages.append(open('/proc/self/statm').read().split()[1])

            def after_train(self, runner):
                open({str(work_dir / 'pages.txt')!r}, 'w').write('\\n'.join(self.pages))
        """)
    )
    hooks = Config.fromfile(config).to_dict().get('custom_hooks', [])
    (work_dir / 'config.py').write_text(
        textwrap.dedent(f"""
        _base_ = '{config}'
        custom_imports = dict(imports=['asl_mmdet', 'resident'])
        custom_hooks = {hooks + [dict(type='ResidentMemory')]}
        """)
    )
    epochs = iterations // 8
    options = options_on(
        shapes,
        'train_dataloader.batch_size=2',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
        'val_dataloader.num_workers=0',
        'val_dataloader.persistent_workers=False',
        'default_hooks.checkpoint.max_keep_ckpts=1',
        f'default_hooks.checkpoint.interval={epochs // evaluations}',
        f'train_cfg.max_epochs={epochs}',
        f'train_cfg.val_interval={epochs // evaluations}',
        'param_scheduler=[]',
        'optim_wrapper.optimizer.lr=1e-4',
    )
    env = dict(PYTHONPATH=f'{work_dir}:{ROOT}')
    done = run_tool('tools/train.py', work_dir / 'config.py', '--work-dir', work_dir, *options, env=env, timeout=3600)
    assert done.returncode == 0, done.stdout
    megabytes = np.loadtxt(work_dir / 'pages.txt') * 4096 / 2**20
    assert len(megabytes) == iterations
    return megabytes


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@TASKS
@pytest.mark.parametrize(
    'iterations, warm_up, evaluations', [(160, 80, 2), pytest.param(4000, 1000, 40, marks=pytest.mark.slow)]
)
def test_memory_stays_flat(shapes, tmp_path, config, options_on, iterations, warm_up, evaluations):
    """The first dozen evaluations leave gaps in the heap that the next ones fill."""
    megabytes = resident_megabytes(config, options_on, shapes, tmp_path, iterations, evaluations)
    window = min(iterations // 10, 100)
    first, last = np.median(megabytes[warm_up : warm_up + window]), np.median(megabytes[-window:])
    print(f'{config.stem}, {iterations} iterations: {first:.1f} MB after {warm_up}, {last:.1f} MB at the end')
    assert last < 1.02 * first


@TASKS
def test_two_runs_with_one_seed_are_equal(shapes, tmp_path, config, options_on):
    """Worker processes, random flips and a random order; another seed gives a classifier other weights."""
    flips = 3 if config is CONFIG else 1
    runs = []
    for name, seed in dict(first=3, second=3, other=4).items():
        if name == 'other' and config is CONFIG:
            break
        options = (
            f'train_dataloader.dataset.pipeline.{flips}.prob=0.5',
            'train_dataloader.batch_size=4',
            'train_dataloader.num_workers=2',
            f'randomness.seed={seed}',
            'model.backbone.norm_eval=False',
            'train_cfg.max_epochs=2',
            'train_cfg.val_begin=9',
        )
        done = run_tool('tools/train.py', config, '--work-dir', tmp_path / name, *options_on(shapes, *options))
        assert done.returncode == 0, done.stdout
        runs.append(weights(tmp_path / name, 2))
    first, second, *others = runs
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    for other in others:
        assert not all(torch.equal(value, other[key]) for key, value in first.items())
