"""tools/ as their users run them: real processes on a small data set of shapes."""

import argparse
import json
import math
import os
import pickle
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config, ConfigDict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from asl_mmdet.command_line import add_config_arguments, load_config
from asl_mmdet.datasets import AnnotationError
from asl_mmdet.datasets.detection import guard_detection_data
from asl_mmdet.evaluation import MultiLabelMetric
from tests.conftest import ROOT, run_tool, start_tool

EPOCHS = 3
CONFIG = ROOT / 'configs/fcos/fcos_tresnet-narrow_fpn_asl_shapes.py'
CLASSIFIER = ROOT / 'configs/multi_label/tresnet-narrow_asl_shapes.py'
BATCHES_OF_4 = [
    'train_dataloader.batch_size=4',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
]


def on(shapes, *options):
    """The shapes config on the small set, without random augmentation, on a fixed seed."""
    options = (
        [f'{name}.dataset.data_root={shapes}/' for name in ('train_dataloader', 'val_dataloader', 'test_dataloader')]
        + [f'{name}.ann_file={shapes}/annotations/val.json' for name in ('val_evaluator', 'test_evaluator')]
        + [
            'train_dataloader.dataset.pipeline.3.prob=0.0',
            'randomness.seed=0',
            f'train_cfg.max_epochs={EPOCHS}',
            f'train_cfg.val_interval={EPOCHS}',
            'default_hooks.visualization.draw=False',
            *options,
        ]
    )
    return ['--cfg-options', *options]


def classifier_on(shapes, *options):
    """The classifier's shapes config, likewise; val has five of the six images, so that two processes differ."""
    loaders = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    options = [
        *(f'{name}.dataset.data_root={shapes}/' for name in loaders),
        *(f'{name}.{option}' for name in loaders for option in ('num_workers=0', 'persistent_workers=False')),
        *(f'{name}.dataset.indices=5' for name in ('val_dataloader', 'test_dataloader')),
        'train_dataloader.dataset.pipeline.1.prob=0.0',
        'model.backbone.norm_eval=True',
        'default_hooks.visualization.interval=1',
        f'train_cfg.max_epochs={EPOCHS}',
        f'train_cfg.val_interval={EPOCHS}',
        *options,
    ]
    return ['--cfg-options', *options]


def weights(work_dir, epoch):
    return torch.load(work_dir / f'epoch_{epoch}.pth', weights_only=False)['state_dict']


def scalar_lines(work_dir):
    return [json.loads(line) for line in next(work_dir.glob('*/vis_data/scalars.json')).read_text().splitlines()]


def final_scalars(work_dir):
    return scalar_lines(work_dir)[-1]


def scalars_of(work_dir, name):
    return [line[name] for line in scalar_lines(work_dir) if name in line]


@pytest.fixture(scope='module')
def trained(shapes, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('trained')
    done = run_tool('tools/train.py', CONFIG, '--work-dir', work_dir, *on(shapes, *BATCHES_OF_4))
    assert done.returncode == 0, done.stdout
    return work_dir, done.stdout


def test_train_logs_losses_and_eta_and_evaluates(trained):
    work_dir, output = trained
    assert re.search(r'Epoch\(train\) .*eta: \d+:\d\d:\d\d.*loss_cls: \d', output)
    assert 'coco/bbox_mAP' in final_scalars(work_dir)
    assert (work_dir / 'last_checkpoint').read_text() == str(work_dir / 'epoch_3.pth')


def test_a_killed_run_resumes_to_the_weights_of_an_uninterrupted_one(trained, shapes, tmp_path):
    command = ['tools/train.py', CONFIG, '--work-dir', tmp_path]
    last_checkpoint = tmp_path / 'last_checkpoint'
    with subprocess.Popen([sys.executable, *map(str, command), *on(shapes, *BATCHES_OF_4)], cwd=ROOT) as process:
        while not last_checkpoint.exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    stopped_at = int(Path(last_checkpoint.read_text()).stem.split('_')[1])
    assert stopped_at < EPOCHS
    resumed = run_tool(*command, '--resume', *on(shapes, *BATCHES_OF_4))
    assert resumed.returncode == 0, resumed.stdout
    assert f'Epoch(train)  [{stopped_at}]' not in resumed.stdout
    whole, half, after_resume = weights(trained[0], EPOCHS), weights(tmp_path, stopped_at), weights(tmp_path, EPOCHS)
    for key, value in whole.items():
        assert torch.equal(after_resume[key], value), key
    assert any(not torch.equal(half[key], value) for key, value in whole.items())


def test_test_evaluates_dumps_and_draws(trained, shapes, tmp_path):
    work_dir, output = trained
    done = run_tool(
        'tools/test.py',
        CONFIG,
        work_dir / 'epoch_3.pth',
        '--work-dir',
        tmp_path,
        '--out',
        tmp_path / 'out.pkl',
        '--show-dir',
        'drawn',
        *on(shapes),
    )
    assert done.returncode == 0, done.stdout
    result = json.loads(next(tmp_path.glob('*/*.json')).read_text())
    assert result['coco/bbox_mAP'] == pytest.approx(final_scalars(work_dir)['coco/bbox_mAP'], abs=1e-6)
    assert len(pickle.loads((tmp_path / 'out.pkl').read_bytes())) == 6
    assert len(list(tmp_path.glob('*/drawn/*.png'))) == 6


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def two_processes(tmp_path):
    """Environment of tools/dist_*.sh in which each process says which threads of gloo are left when it exits."""
    (tmp_path / 'site').mkdir()
    (tmp_path / 'site/sitecustomize.py').write_text(
        textwrap.dedent("""
        import atexit
        import os
        from pathlib import Path

        def tell():
            names = [path.read_text().strip() for path in Path('/proc/self/task').glob('*/comm')]
            # In one piece: several processes write at the same time.
            os.write(1, f"left of gloo: {[name for name in names if 'gloo' in name]}\\n".encode())

        atexit.register(tell)
        """)
    )
    return dict(PORT=free_port(), OMP_NUM_THREADS='1', PYTHONPATH=str(tmp_path / 'site'))


def test_two_processes_evaluate_like_one(trained, shapes, tmp_path):
    work_dir, _ = trained
    done = run_tool(
        *('tools/dist_test.sh', CONFIG, work_dir / f'epoch_{EPOCHS}.pth', 2, '--work-dir', tmp_path),
        *on(shapes, 'test_dataloader.batch_size=1'),
        env=two_processes(tmp_path),
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count('left of gloo: []') == 3  # the launcher's, too
    result = json.loads(next(tmp_path.glob('*/*.json')).read_text())
    assert result['coco/bbox_mAP'] == pytest.approx(final_scalars(work_dir)['coco/bbox_mAP'], abs=1e-6)


def test_two_processes_equal_one_with_the_whole_batch(shapes, tmp_path):
    # Adam turns the rounding of a gradient near 0 into a whole step.
    common = [
        'optim_wrapper.optimizer.type=SGD',
        'model.backbone.norm_eval=True',
        'train_cfg.max_epochs=1',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
    ]
    two = run_tool(
        'tools/dist_train.sh',
        CONFIG,
        2,
        '--work-dir',
        tmp_path / 'two',
        *on(shapes, *common, 'train_dataloader.batch_size=2'),
        env=dict(PORT=free_port(), OMP_NUM_THREADS='1'),
    )
    assert two.returncode == 0, two.stdout
    assert '2 processes on the CPU, backend gloo' in two.stdout
    one = run_tool(
        'tools/train.py', CONFIG, '--work-dir', tmp_path / 'one', *on(shapes, *common, 'train_dataloader.batch_size=4')
    )
    assert one.returncode == 0, one.stdout
    of_two, of_one = weights(tmp_path / 'two', 1), weights(tmp_path / 'one', 1)
    for key, value in of_one.items():
        torch.testing.assert_close(of_two[key], value, rtol=1e-3, atol=2e-5, msg=lambda text: f'{key}: {text}')


@pytest.fixture(scope='module')
def adaptive_classifier(tmp_path_factory):
    """The classifier's shapes config with every hook of this package that holds state."""
    config = tmp_path_factory.mktemp('config') / 'adaptive.py'
    config.write_text(
        textwrap.dedent(f"""
        _base_ = '{CLASSIFIER}'
        optim_wrapper = dict(optimizer=dict(_delete_=True, type='SGD', lr=0.02))
        default_hooks = dict(logger=dict(interval=1))
        custom_hooks = [
            dict(type='RawAndEMAHook', metric='multi-label/mAP', momentum=0.1),
            dict(type='ProbabilityGapHook'),
            dict(type='AdaptiveAsymmetryHook', target=0.3, step=0.2),
        ]
        """)
    )
    return config


@pytest.fixture(scope='module')
def trained_classifier(shapes, adaptive_classifier, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('classifier')
    options = classifier_on(shapes, 'train_dataloader.batch_size=4')
    done = run_tool('tools/train.py', adaptive_classifier, '--work-dir', work_dir, *options)
    assert done.returncode == 0, done.stdout
    return work_dir, done.stdout


def test_a_classifier_is_trained_on_the_annotations_of_the_detector(trained_classifier):
    work_dir, output = trained_classifier
    assert 'CocoMultiLabelDataset: 16 images' in output and '6 classes' in output
    assert re.search(r'multi-label/mAP: [\d.]+ with raw weights, [\d.]+ with their average', output)
    assert {'multi-label/mAP', 'raw/multi-label/mAP', 'ema/multi-label/mAP'} <= final_scalars(work_dir).keys()
    assert len(list(work_dir.glob('*/vis_data/vis_image/val_img_*.png'))) == 1


def test_what_is_logged_is_in_the_event_files_of_tensorboard(trained_classifier):
    work_dir, _ = trained_classifier
    events = EventAccumulator(str(next(work_dir.glob('*/vis_data'))))
    events.Reload()
    logged = {}
    for line in scalar_lines(work_dir):
        for name, value in line.items():
            logged.setdefault(name, []).append((line['step'], value))
    expected = {'loss', 'lr', 'p_t_pos', 'p_t_neg', 'gap', 'gamma_neg', 'multi-label/mAP', 'ema/multi-label/mAP'}
    assert expected <= set(events.Tags()['scalars'])
    for name in expected:
        written = [(event.step, event.value) for event in events.Scalars(name)]
        assert written == [(step, pytest.approx(value, rel=1e-6)) for step, value in logged[name]], name
    assert any(tag.startswith('val_img') for tag in events.Tags()['images'])


def test_two_processes_train_and_adapt_a_classifier_like_one(trained_classifier, adaptive_classifier, shapes, tmp_path):
    done = run_tool(
        *('tools/dist_train.sh', adaptive_classifier, 2, '--work-dir', tmp_path),
        *classifier_on(shapes, 'train_dataloader.batch_size=2', 'val_dataloader.batch_size=1'),
        env=two_processes(tmp_path),
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count('left of gloo: []') == 3
    one, two = (
        torch.load(folder / f'epoch_{EPOCHS}.pth', weights_only=False) for folder in (trained_classifier[0], tmp_path)
    )
    assert one['raw_in_state_dict'] == two['raw_in_state_dict']
    for part in ('state_dict', 'ema_state_dict'):
        for key, value in one[part].items():
            torch.testing.assert_close(two[part][key], value, rtol=1e-3, atol=2e-5, msg=lambda text: f'{key}: {text}')
    metrics = {key: value for key, value in final_scalars(trained_classifier[0]).items() if 'multi-label' in key}
    assert len(metrics) > 30
    others = final_scalars(tmp_path)
    assert {key: others[key] for key in metrics} == pytest.approx(metrics, abs=1e-3)
    for name in ('gap', 'gamma_neg'):
        trajectory, other = (scalars_of(folder, name) for folder in (trained_classifier[0], tmp_path))
        assert len(trajectory) == 4 * EPOCHS and len(set(trajectory)) > EPOCHS
        assert other == pytest.approx(trajectory, abs=1e-4)


def endless_classifier_on(shapes, tmp_path):
    lengths = (
        *('train_cfg.max_epochs', 'train_cfg.val_interval', 'param_scheduler.0.total_steps'),
        'default_hooks.checkpoint.interval',
    )
    options = [f'{length}=100000' for length in lengths]
    return ['--work-dir', tmp_path, *classifier_on(shapes, *options, 'default_hooks.logger.interval=1')]


def wait_until(is_true, *processes):
    while not is_true():
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)


def is_training(output):
    return 'Epoch(train)' in output.read_text()


def children(pid):
    return [int(child) for child in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]


def test_a_killed_process_ends_the_run(shapes, tmp_path):
    """torch's launcher ends the others, and says which one was killed."""
    log = tmp_path / 'output.txt'
    command = ['tools/dist_train.sh', CLASSIFIER, 2, *endless_classifier_on(shapes, tmp_path)]
    env = dict(PORT=free_port(), OMP_NUM_THREADS='1')
    with log.open('w') as stdout, start_tool(*command, env=env, stdout=stdout) as launcher:
        wait_until(lambda: is_training(log), launcher)
        first, second = children(launcher.pid)
        os.kill(second, signal.SIGKILL)
        killed_at = time.monotonic()
        assert launcher.wait(timeout=600) != 0
    print(f'the run ended {time.monotonic() - killed_at:.1f} s after one process was killed')
    assert not any(Path(f'/proc/{pid}').exists() for pid in (first, second))
    assert re.search(rf'exitcode  *: -9 \(pid: {second}\)', log.read_text())


@pytest.mark.parametrize(
    'sent, to, timeout, reason',
    [
        # Process 0 keeps the group's store, too.
        ('SIGKILL', 0, 300, '((reset|closed) by peer|Broken pipe)'),
        pytest.param('SIGSTOP', 1, 20, 'Timed out', marks=pytest.mark.slow),
    ],
)
def test_a_process_does_not_wait_for_ever_for_another(shapes, tmp_path, sent, to, timeout, reason):
    """Without a launcher that ends it: a killed peer is seen at once, one that stands still after the timeout."""
    command = ['tools/train.py', CLASSIFIER, '--launcher', 'pytorch', *endless_classifier_on(shapes, tmp_path)]
    common = dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port(), OMP_NUM_THREADS='1')
    logs = [tmp_path / f'{rank}.txt' for rank in (0, 1)]
    processes = []
    try:
        for rank, log in enumerate(logs):
            env = dict(common, RANK=str(rank), LOCAL_RANK=str(rank))
            with log.open('w') as stdout:
                process = start_tool(*command, f'env_cfg.dist_cfg.timeout={timeout}', env=env, stdout=stdout)
            processes.append(process)
        wait_until(lambda: is_training(logs[0]), *processes)
        processes[to].send_signal(getattr(signal, sent))
        sent_at = time.monotonic()
        assert processes[1 - to].wait(timeout=600) == 1, logs[1 - to].read_text()[-3000:]
        waited = time.monotonic() - sent_at
    finally:
        for process in processes:
            process.kill()
            process.wait()
    print(f'the other process ended {waited:.1f} s after {sent}, with a timeout of {timeout} s')
    output = logs[1 - to].read_text()
    message = rf'Process {1 - to} of 2 ends, because another one .*env_cfg.dist_cfg.timeout.*{reason}'
    assert re.search(message, output.splitlines()[-1])
    assert 'Traceback' not in output
    if sent == 'SIGSTOP':
        assert waited >= timeout - 1
    else:
        assert waited < timeout


def test_processes_wait_for_ten_minutes_unless_told_otherwise(monkeypatch):
    monkeypatch.setenv('SLURM_PROCID', '0')
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    launched = [str(CLASSIFIER), '--launcher', 'slurm']
    told = ['--cfg-options', 'env_cfg.dist_cfg.timeout=60']
    for options, expected in ((launched, 600), ([*launched, *told], 60), ([str(CLASSIFIER)], None)):
        cfg = load_config(parser.parse_args(options))
        assert cfg.env_cfg.dist_cfg.get('timeout') == expected and cfg.env_cfg.dist_cfg.backend == 'nccl'


def test_test_evaluates_dumps_and_draws_a_classifier(trained_classifier, shapes, tmp_path):
    work_dir, _ = trained_classifier
    command = ['tools/test.py', CLASSIFIER, work_dir / f'epoch_{EPOCHS}.pth', '--work-dir', tmp_path]
    of_a_resumed_run = classifier_on(shapes, 'resume=True', 'train_dataloader.dataset.ann_file=none.json')
    done = run_tool(*command, '--out', tmp_path / 'out.pkl', '--show-dir', 'drawn', *of_a_resumed_run)
    assert done.returncode == 0, done.stdout
    result = json.loads(next(tmp_path.glob('*/*.json')).read_text())
    assert result['multi-label/mAP'] == pytest.approx(final_scalars(work_dir)['multi-label/mAP'], abs=1e-6)
    assert re.search(r'\| *class *\| *positives *\| *AP *\|', done.stdout) and 'multi-label/AP_ring' in result
    dumped = pickle.loads((tmp_path / 'out.pkl').read_bytes())
    assert [len(sample['pred_score']) for sample in dumped] == [6] * 5
    metric = MultiLabelMetric()
    metric.process(None, dumped)
    assert metric.evaluate(5)['multi-label/mAP'] == pytest.approx(result['multi-label/mAP'])
    assert len(list(tmp_path.glob('*/drawn/*.png'))) == 5
    assert [path.name for path in tmp_path.glob('*/vis_data/vis_image/*')] == ['multi-label_AP_0.png']


@pytest.mark.parametrize('workers', [0, 1])
def test_bad_data_end_in_one_message(shapes, tmp_path, workers):
    """A picture that is cut off shows only when it is read, in a worker process or in this one."""
    for split in ('train', 'val'):
        shutil.copytree(shapes / split, tmp_path / split)
    shutil.copytree(shapes / 'annotations', tmp_path / 'annotations')
    for picture in (tmp_path / 'train').iterdir():
        picture.write_bytes(picture.read_bytes()[:100])
    loader = [f'train_dataloader.num_workers={workers}', 'train_dataloader.dataset.max_corrupt_images=2']
    command = ['tools/train.py', CLASSIFIER, '--work-dir', tmp_path / 'work']
    done = run_tool(*command, *classifier_on(tmp_path, *loader))
    assert done.returncode == 1 and 'Traceback' not in done.stdout
    # OpenCV's own warnings come in between.
    last = [line for line in done.stdout.strip().splitlines() if not line.startswith('[ WARN')][-1]
    assert re.search(
        r'- ERROR - .* - \S*/train/\d+\.png of .*train\.json cannot be read: .*max_corrupt_images=2$', last
    ), last
    (log,) = (tmp_path / 'work').glob('*/*.log')
    assert 'max_corrupt_images=2' in log.read_text()


def test_a_stock_config_needs_two_lines_and_no_tool_of_ours(shapes, tmp_path):
    config = tmp_path / 'mine.py'
    config.write_text(
        textwrap.dedent(f"""
        _base_ = '{CONFIG}'
        custom_imports = dict(imports=['asl_mmdet'], allow_failed_imports=False)
        model = dict(
            backbone=dict(_delete_=True, type='ResNet', depth=18, base_channels=8, style='pytorch'),
            neck=dict(in_channels=[8, 16, 32, 64]),
            bbox_head=dict(loss_cls=dict(_delete_=True, type='AsymmetricLoss', use_sigmoid=True, gamma_pos=1.0,
                                         gamma_neg=2.0, clip=0.0)))
    """)
    )
    import mmdet

    script = f'{mmdet.__path__[0]}/.mim/tools/train.py'
    done = run_tool(
        script,
        config,
        '--work-dir',
        tmp_path / 'run',
        cwd=tmp_path,
        *on(shapes, *BATCHES_OF_4, 'train_cfg.max_epochs=1'),
    )
    assert done.returncode == 0, done.stdout
    assert (tmp_path / 'run/epoch_1.pth').exists()


@pytest.mark.parametrize('tool', ['tools/test.py', 'tools/infer.py'])
def test_weights_of_another_model_are_refused(tool, trained, shapes, tmp_path):
    work_dir, _ = trained
    files = [CONFIG, work_dir / f'epoch_{EPOCHS}.pth']
    wider = 'model.bbox_head.num_classes=9'
    if tool == 'tools/test.py':
        done = run_tool(tool, *files, '--work-dir', tmp_path, *on(shapes, wider))
    else:
        done = run_tool(tool, next((shapes / 'val').iterdir()), *files, '--cfg-options', wider)
    assert done.returncode == 1 and 'Traceback' not in done.stdout
    assert 'does not fit the model of the config: 2 tensors are missing or of another shape, bbox_head' in done.stdout


def test_classes_in_another_order_are_refused(trained_classifier, shapes, tmp_path):
    work_dir, _ = trained_classifier
    checkpoint = torch.load(work_dir / f'epoch_{EPOCHS}.pth', weights_only=False)
    classes = checkpoint['meta']['dataset_meta']['classes']
    checkpoint['meta']['dataset_meta']['classes'] = (classes[1], classes[0], *classes[2:])
    torch.save(checkpoint, tmp_path / 'other.pth')
    done = run_tool('tools/test.py', CLASSIFIER, tmp_path / 'other.pth', '--work-dir', tmp_path, *classifier_on(shapes))
    assert done.returncode == 1 and 'Traceback' not in done.stdout
    assert f"in another order: class 0 is '{classes[1]}' there and '{classes[0]}' in the data set" in done.stdout


def test_weights_of_another_model_are_not_begun_with(shapes, tmp_path):
    """The official layout, of which mmengine would load nothing, and a run of a detector to go on with."""
    model = MODELS.build(Config.fromfile(ROOT / CONFIG).model)
    torch.save(dict(model=model.state_dict(), num_classes=6), tmp_path / 'official.pth')
    torch.save(dict(state_dict=model.state_dict(), meta=dict(epoch=1, iter=2)), tmp_path / 'detector.pth')
    backbone = [f'model.backbone.init_cfg.{key}' for key in ('_delete_=True', 'type=Pretrained', 'checkpoint=none.pth')]
    for resume, options, message in (
        ([], [f'load_from={tmp_path}/official.pth'], 'holds no tensor .*: it has model, num_classes ..., '),
        ([], backbone, "there is no file 'none.pth'. Weights of TResNet are published"),
        (['--resume', tmp_path / 'detector.pth'], [], r'does not fit .* \d+ tensors are missing .*head.fc'),
    ):
        options = classifier_on(shapes, *options)
        done = run_tool('tools/train.py', CLASSIFIER, '--work-dir', tmp_path / 'run', *resume, *options)
        assert done.returncode == 1 and 'Traceback' not in done.stdout
        assert re.search(message, done.stdout.splitlines()[-1]), done.stdout


def test_wrong_calls_say_what_is_wrong(tmp_path):
    done = run_tool('tools/train.py', CONFIG, '--cfg-options', f'load_from={tmp_path}/none.pth')
    assert done.returncode == 1 and f'no checkpoint file {tmp_path}/none.pth' in done.stdout
    # Weights in the work dir are no run to go on with.
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/pretrained.pth').touch()
    resume = ('--work-dir', tmp_path / 'run', '--resume', '--cfg-options', f'load_from={tmp_path}/none.pth')
    done = run_tool('tools/train.py', CONFIG, *resume)
    assert done.returncode == 1 and f'no checkpoint file {tmp_path}/none.pth' in done.stdout
    done = run_tool('tools/train.py', CONFIG, '--resume', tmp_path / 'none.pth')
    assert done.returncode == 1 and f'no checkpoint file {tmp_path}/none.pth' in done.stdout
    done = run_tool('tools/infer.py', tmp_path, CONFIG, 'none.pth', '--device', 'cuda:77')
    assert done.returncode == 2 and 'argument --device: cuda:77: ' in done.stdout
    done = run_tool('tools/test.py', CONFIG, tmp_path / 'none.pth')
    assert done.returncode == 2 and f'no checkpoint file {tmp_path}/none.pth' in done.stdout
    done = run_tool('tools/train.py', CONFIG, '--amp', env=dict(CUDA_VISIBLE_DEVICES=''))
    assert done.returncode == 2 and '--amp needs a GPU' in done.stdout
    amp = ('--cfg-options', 'optim_wrapper.type=AmpOptimWrapper')
    done = run_tool('tools/train.py', CONFIG, *amp, env=dict(CUDA_VISIBLE_DEVICES=''))
    assert done.returncode == 1 and done.stdout.endswith('--cfg-options optim_wrapper.type=OptimWrapper\n')
    done = run_tool('tools/train.py', tmp_path / 'none.py')
    assert done.returncode == 1 and f'no config file {tmp_path}/none.py' in done.stdout
    for script, usage in (
        ('tools/dist_train.sh', 'CONFIG PROCESSES'),
        ('tools/dist_test.sh', 'CONFIG CHECKPOINT PROCESSES'),
        ('tools/slurm_train.sh', 'PARTITION JOB_NAME CONFIG WORK_DIR'),
    ):
        done = run_tool(script)
        assert done.returncode == 2 and usage in done.stdout


@pytest.mark.parametrize('device', ['cpu', 'mps'])
@pytest.mark.parametrize(
    'config, arguments, message',
    [
        (CONFIG, ['--amp'], '--amp needs a GPU'),
        (ROOT / 'configs/multi_label/tresnet-m_asl_8xb16-60e_coco2014-224.py', [], 'OptimWrapper'),
    ],
)
def test_mixed_precision_is_refused_where_mmengine_has_none(
    config, arguments, message, device, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr('mmengine.device.get_device', lambda: device)
    monkeypatch.setattr('sys.argv', ['train.py', str(config), '--work-dir', str(tmp_path), *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / 'tools/train.py'), run_name='__main__')
    told = f'{stopped.value.code}\n{capsys.readouterr().err}'
    assert message in told and "needs a GPU, of another kind than Apple's" in told


def test_slurm_starts_one_task_a_gpu(tmp_path):
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\necho "$@"\n')
    srun.chmod(0o755)

    done = run_tool(
        'tools/slurm_train.sh',
        'part',
        'job',
        'config.py',
        'dir',
        '--resume',
        env=dict(PATH=f'{tmp_path}:{os.environ["PATH"]}', GPUS='16', SRUN_ARGS='--qos high'),
    )
    assert (
        done.stdout.split()
        == (
            '-p part --job-name=job --gres=gpu:8 --ntasks=16 --ntasks-per-node=8 --cpus-per-task=5 '
            '--kill-on-bad-exit=1 --qos high python -u tools/train.py config.py --work-dir dir '
            '--launcher slurm --resume'
        ).split()
    )


# ------------------------------------------------------------------------------------------------ bad data of detectors


def spoilt_shapes(shapes, folder, spoil):
    """A copy of the shapes whose training data ``spoil(content, folder)`` has changed."""
    shutil.copytree(shapes, folder)
    path = folder / 'annotations/train.json'
    content = json.loads(path.read_text())
    text = spoil(content, folder)
    path.write_text(text if isinstance(text, str) else json.dumps(content))
    return folder


def spoil_picture(data):
    return lambda content, folder: (folder / 'train' / content['images'][0]['file_name']).write_bytes(data) and None


SPOILT = {
    'no JSON': (lambda content, _: json.dumps(content)[:-30], 'train.json is not a JSON file'),
    'a box of NaN': (
        lambda content, _: content['annotations'][0].update(bbox=[1, 2, math.nan, 4]),
        'has bbox .1, 2, nan',
    ),
    'another class': (lambda content, _: content['categories'][0].update(name='circel'), "no class 'circle' .did you"),
    'another order': (lambda content, _: content['categories'].reverse(), 'lists its categories in the order'),
    'outside': (lambda content, _: content['images'][0].update(file_name='../x.png'), "names '../x.png', .* outside"),
    'missing': (
        lambda content, _: content['images'][0].update(file_name='x.png'),
        '1 of 16 images .* do not exist.*x.png',
    ),
    'an empty picture': (spoil_picture(b''), r'train/\S+ cannot be read: the file is empty'),
    'a page': (spoil_picture(b'<html>404</html>'), r'train/\S+ cannot be read: AssertionError: failed to load'),
}


@pytest.mark.parametrize(
    'what', ['no JSON', 'an empty picture', *(pytest.param(w, marks=pytest.mark.slow) for w in SPOILT)]
)
def test_bad_data_of_a_detector_end_in_one_line(shapes, tmp_path, what):
    spoil, message = SPOILT[what]
    folder = spoilt_shapes(shapes, tmp_path / 'data', spoil)
    command = ['tools/train.py', CONFIG, '--work-dir', tmp_path / 'work']
    done = run_tool(*command, *on(folder, 'train_cfg.max_epochs=1', 'train_dataloader.num_workers=1'))
    assert done.returncode == 1 and 'Traceback' not in done.stdout, done.stdout
    assert re.search(message, done.stdout.strip().splitlines()[-1]), done.stdout[-2000:]


@pytest.mark.parametrize('what', SPOILT)
def test_faults_in_an_annotation_file_of_a_detector(shapes, tmp_path, what):
    spoil, message = SPOILT[what]
    dataset = Config.fromfile(CONFIG).train_dataloader.dataset
    dataset.data_root = f'{spoilt_shapes(shapes, tmp_path / "data", spoil)}/'
    loader = ConfigDict(dataset=ConfigDict(type='RepeatDataset', times=2, dataset=dataset))
    if what in ('an empty picture', 'a page'):
        guard_detection_data(loader, [], False)
        dataset = DATASETS.build(dataset)
        with pytest.raises(AnnotationError, match=message):
            [dataset[i] for i in range(len(dataset))]
    else:
        with pytest.raises(AnnotationError, match=message):
            guard_detection_data(loader, [], False)
    if what == 'outside':
        (tmp_path / 'data/x.png').touch()
        guard_detection_data(
            loader, [ConfigDict(type='CocoMetric', ann_file=f'{tmp_path}/data/train/../annotations/train.json')], True
        )
        with pytest.raises(AnnotationError, match='there is no annotation file .*none.json'):
            guard_detection_data(loader, [ConfigDict(type='CocoMetric', ann_file=f'{tmp_path}/none.json')], True)


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(id=0), r'annotations\[0\] has id 0. Where boxes are evaluated, ids are numbers from 1 on'),
        (dict(id='a'), r"annotations\[0\] has id 'a'. Where boxes are evaluated"),
        (dict(iscrowd=None), 'annotation 1 has no iscrowd, which pycocotools needs'),
        (dict(bbox=[0, 0, 'x', 1]), 'annotation 1 has bbox'),
    ],
)
def test_what_pycocotools_needs_of_the_ground_truth(shapes, tmp_path, change, message):
    def spoil(content, _):
        content['annotations'][0].update(change)
        if 'iscrowd' in change:
            del content['annotations'][0]['iscrowd']

    folder = spoilt_shapes(shapes, tmp_path / 'data', spoil)
    cfg = Config.fromfile(CONFIG)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.data_root = f'{folder}/'
        loader.dataset.ann_file = 'annotations/train.json'
        loader.dataset.data_prefix = dict(img='train/')
    if 'bbox' not in change:
        guard_detection_data(cfg.train_dataloader, [], False)
    with pytest.raises(AnnotationError, match=message):
        guard_detection_data(cfg.val_dataloader, [], False)
    cfg.val_dataloader.dataset.update(ann_file='annotations/val.json', data_prefix=dict(img='val/'))
    evaluators = [ConfigDict(type='CocoMetric', ann_file=f'{folder}/annotations/train.json')]
    with pytest.raises(AnnotationError, match=message):
        guard_detection_data(cfg.val_dataloader, evaluators, False)


@pytest.mark.parametrize('crowd', [0, 1])
def test_a_box_without_area_is_told_where_pycocotools_counts_it_as_missed(shapes, tmp_path, monkeypatch, crowd):
    """Not refused: one of thousands leaves an evaluation what it is."""
    said, flat = [], dict(bbox=[3, 3, 0, 9], iscrowd=crowd)
    monkeypatch.setattr('asl_mmdet.datasets.detection.print_log', lambda message, *_: said.append(message))
    folder = spoilt_shapes(shapes, tmp_path / 'data', lambda content, _: content['annotations'][0].update(flat))
    cfg = Config.fromfile(CONFIG)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.update(data_root=f'{folder}/', ann_file='annotations/train.json', data_prefix=dict(img='train/'))
    guard_detection_data(cfg.train_dataloader, [], False)
    assert not said
    guard_detection_data(cfg.val_dataloader, [], False)
    if crowd:
        assert not said
    else:
        assert '1 boxes are without area, such as annotation 1, bbox [3, 3, 0, 9]. pycocotools counts' in said[0]


@pytest.mark.parametrize('kind', ['CocoMetric', 'mmdet.CocoMetric', 'mmdet.CocoReportMetric', CocoMetric])
def test_an_evaluators_file_has_the_images_of_its_data_set(shapes, tmp_path, kind):
    loader = Config.fromfile(CONFIG).val_dataloader
    loader.dataset.data_root = f'{shapes}/'
    shutil.copy(shapes / 'annotations/val.json', tmp_path / 'copy.json')
    guard_detection_data(loader, [ConfigDict(type=kind, ann_file=f'{tmp_path}/copy.json')], False)
    evaluators = [ConfigDict(type=kind, ann_file=f'{shapes}/annotations/train.json')]
    with pytest.raises(
        AnnotationError, match='evaluator reads .*/train.json, whose images are not those of .*val.json'
    ):
        guard_detection_data(loader, evaluators, False)


def test_an_evaluators_file_has_the_classes_of_its_data_set(shapes, tmp_path):
    folder = spoilt_shapes(
        shapes, tmp_path / 'data', lambda content, _: content['categories'][2].update(name='cube') and None
    )
    cfg = Config.fromfile(CONFIG)
    cfg.val_dataloader.dataset.data_root = f'{folder}/'
    evaluators = [ConfigDict(type='CocoMetric', ann_file=f'{folder}/annotations/train.json')]
    with pytest.raises(AnnotationError, match="train.json has no class 'square'"):
        guard_detection_data(cfg.val_dataloader, evaluators, False)
