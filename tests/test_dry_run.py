import contextlib
import json
import logging
import os
import re
import shutil
import threading
from collections import Counter
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import HOOKS, MODELS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.hub import get_config
from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS

from asl_mmdet.dry_run import DryRunError, _describe_cost, _suspicious_sizes, _wrong_sizes, dry_run
from tests.conftest import ROOT, run_tool

CLASSIFIER = ROOT / 'configs/multi_label/tresnet-narrow_asl_shapes.py'
DETECTOR = ROOT / 'configs/fcos/fcos_tresnet-narrow_fpn_asl_shapes.py'
CLASSES = ('circle', 'ring', 'square', 'triangle', 'star', 'cross')


def config_on(shapes, tmp_path, file=CLASSIFIER, **options):
    """Six images a step of training, in the order of the file."""
    cfg = Config.fromfile(file)
    cfg.work_dir = str(tmp_path / 'work')
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].update(num_workers=0, persistent_workers=False)
        cfg[f'{split}_dataloader'].dataset.data_root = f'{shapes}/'
        if 'ann_file' in cfg[f'{split}_evaluator'] if split != 'train' else False:
            cfg[f'{split}_evaluator'].ann_file = f'{shapes}/annotations/val.json'
    cfg.train_dataloader.update(batch_size=6)
    cfg.train_dataloader.sampler.shuffle = False
    cfg.merge_from_dict(options)
    return cfg


def snapshot(*folders):
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob('*')}


def suspicions(lines):
    return [line.removeprefix('suspicious  ') for line in lines if line.startswith('suspicious')]


def boxes_of_first_images(shapes, number):
    content = json.loads((shapes / 'annotations/train.json').read_text())
    first = {entry['id'] for entry in content['images'][:number]}
    return [(a['image_id'], CLASSES[a['category_id'] - 1]) for a in content['annotations'] if a['image_id'] in first]


def test_check_leaves_nothing_behind(shapes, tmp_path, tmp_path_factory):
    data = tmp_path / 'data'
    shutil.copytree(shapes, data)
    # Workers make sockets there, whose paths may have 107 characters.
    (tmp_path / 't').mkdir()
    config = tmp_path / 'mine.py'
    options = [f"{split}_dataloader=dict(dataset=dict(data_root='{data}/'))" for split in ('train', 'val', 'test')]
    config.write_text('\n'.join([f"_base_ = '{CLASSIFIER}'", *options]))
    before = snapshot(tmp_path)
    train = ROOT / 'tools/train.py'
    # torch keeps compiled kernels among temporary files.
    env = dict(TMPDIR=str(tmp_path / 't'), TORCHINDUCTOR_CACHE_DIR=str(tmp_path_factory.mktemp('kernels')))
    done = run_tool(train, config, '--check', cwd=tmp_path, env=env)
    assert done.returncode == 0 and done.stdout.endswith('\nfit to be trained\n'), done.stdout
    assert re.search(r'^train +16 images in 2 batches of 8, 2 workers; 6 classes$', done.stdout, re.M)
    assert re.search(r'^val +6 images in 1 batches of 32', done.stdout, re.M)
    assert {path: time for path, time in snapshot(tmp_path).items() if not path.is_dir()} == {
        path: time for path, time in before.items() if not path.is_dir()
    }
    assert snapshot(tmp_path).keys() == before.keys()


def test_check_leaves_an_outdated_cache_as_it_is(shapes, tmp_path):
    data = tmp_path / 'data'
    shutil.copytree(shapes, data)
    for path in (data / 'annotations').glob('*.json'):
        path.with_name(f'{path.name}.labels.npz').write_bytes(b'outdated')
    before = snapshot(data)
    dry_run(config_on(data, tmp_path))
    assert snapshot(data) == before


def test_a_model_can_be_built_after_a_dry_run(shapes, tmp_path):
    """mmengine writes what initialized it to the files of the last logger, of which that of the dry run is gone."""
    cfg = config_on(shapes, tmp_path)
    dry_run(cfg)
    assert not any(isinstance(handler, logging.FileHandler) for handler in MMLogger.get_current_instance().handlers)
    MODELS.build(cfg.model).init_weights()


@pytest.mark.parametrize('evaluator', [dict(), dict(require_negatives=True)])
def test_a_batch_without_labels_shows_nothing_of_the_metrics_and_is_no_fault(shapes, tmp_path, evaluator):
    data = tmp_path / 'data'
    shutil.copytree(shapes, data)
    path = data / 'annotations/val.json'
    content = json.loads(path.read_text())
    if not evaluator:
        first = content['images'][0]['id']
        content['annotations'] = [box for box in content['annotations'] if box['image_id'] != first]
    path.write_text(json.dumps(content))
    cfg = config_on(data, tmp_path)
    cfg.val_dataloader.batch_size = 1
    cfg.val_dataloader.dataset.unannotated = 'keep'
    cfg.val_evaluator.update(evaluator)
    lines = dry_run(cfg)
    assert any('no metric: nothing was found in it' in line for line in lines), lines


def test_check_of_what_cannot_be_trained_ends_in_one_line(shapes, tmp_path):
    options = [f'{split}_dataloader.dataset.data_root={shapes}/' for split in ('train', 'val', 'test')]
    options.append('default_hooks.checkpoint.intervall=3')
    done = run_tool('tools/train.py', CLASSIFIER, '--check', '--cfg-options', *options)
    assert done.returncode == 1 and 'Traceback' not in done.stdout
    assert 'intervall is no argument of SafeCheckpointHook' in done.stdout.strip().splitlines()[-1], done.stdout
    options = ('train_dataloader.dataset.data_root=nowhere/',)
    done = run_tool('tools/train.py', CLASSIFIER, '--check', '--cfg-options', *options)
    assert done.returncode == 1 and 'Traceback' not in done.stdout
    assert re.search(
        r'\S+shapes.py is not fit to be trained: .*: nowhere/annotations/train.json does not exist',
        done.stdout.strip().splitlines()[-1],
    ), done.stdout


def test_a_classifier_is_reported(shapes, tmp_path):
    cfg = config_on(shapes, tmp_path)
    given = cfg.to_dict()
    lines = dry_run(cfg)
    report = '\n'.join(lines)
    assert cfg.to_dict() == given and not (tmp_path / 'work').exists()
    labels = set(boxes_of_first_images(shapes, 6))
    per_image = Counter(image for image, _ in labels)
    counts = Counter(name for _, name in labels)
    fewest = min(per_image.values()) if len(per_image) == 6 else 0
    assert f'positives in a batch {len(labels)}, {fewest} to {max(per_image.values())} an image: ' in report
    listed = next(line for line in lines if 'positives in a batch' in line).rpartition('image: ')[2]
    assert {part.rpartition(' ')[0]: int(part.rpartition(' ')[2]) for part in listed.split(', ')} == counts
    assert re.search(r'inputs \(6, 3, 64, 64\) float32 in \[0(\.\d+)?, (1|0\.\d+)\]', report)
    assert 'test        the same as val' in lines
    assert 'ImageClassifier on cpu: 185,814 parameters, 185,814 of them trainable' in report
    # OneCycle begins at a 25th of 0.0025.
    assert 'AdamW in OptimWrapper, lr 0.0001 at the first step, ScalableOneCycleLR' in report
    assert 'a batch of 6 images gives multi-label/mAP, ' in report
    assert re.search(r'memory +\d+\.\d\d GiB', report)
    assert re.search(r'time +\d\.\d{3} s a step \(median of 2 behind the first\)', report)
    assert re.search(r' an epoch, 54 steps, 3 evaluations of ', report)


def test_a_detector_is_reported(shapes, tmp_path):
    report = '\n'.join(dry_run(config_on(shapes, tmp_path, DETECTOR)))
    boxes = boxes_of_first_images(shapes, 6)
    name, count = min(Counter(name for _, name in boxes).items(), key=lambda item: (-item[1], CLASSES.index(item[0])))
    assert f'positives in a batch {len(boxes)}, ' in report and f'an image: {name} {count}' in report
    assert re.search(r'losses +loss [\d.]+, loss_cls [\d.]+, loss_bbox [\d.]+, loss_centerness [\d.]+; after 2', report)
    assert 'FCOS on cpu' in report and 'evaluation  a batch of 6 images gives' in report


def test_images_that_a_detectors_filter_leaves_out_are_counted(shapes, tmp_path):
    content = json.loads((shapes / 'annotations/train.json').read_text())
    data = tmp_path / 'data'
    shutil.copytree(shapes, data)
    first = {entry['id'] for entry in content['images'][:4]}
    content['annotations'] = [box for box in content['annotations'] if box['image_id'] not in first]
    (data / 'annotations/train.json').write_text(json.dumps(content))
    number = len(content['images'])
    empty = number - len({box['image_id'] for box in content['annotations']})
    cfg = config_on(data, tmp_path, DETECTOR)
    cfg.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=True, min_size=32)
    lines = [line.strip() for line in dry_run(cfg) if 'left out' in line]
    assert lines == [f'{empty} of {number} images left out by filter_cfg=dict(filter_empty_gt=True, min_size=32)']


def test_a_detector_whose_head_is_for_other_data_is_refused(shapes, tmp_path):
    cfg = config_on(shapes, tmp_path, DETECTOR, **{'model.bbox_head.num_classes': 80})
    with pytest.raises(
        DryRunError, match='training: .* has 6 classes .*FCOSHead has num_classes=80: set model.bbox_head.'
    ):
        dry_run(cfg)


@pytest.mark.slow
def test_a_stock_config_of_mmdet_is_reported(shapes, tmp_path):
    file = tmp_path / 'retinanet.py'
    file.write_text(
        "_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'\n"
        f'_data = dict(metainfo=dict(classes={CLASSES}))\n'
        'model = dict(backbone=dict(init_cfg=None), bbox_head=dict(num_classes=6))\n'
        "train_dataloader = dict(dataset=dict(**_data, ann_file='annotations/train.json', "
        "data_prefix=dict(img='train/')))\n"
        "val_dataloader = dict(dataset=dict(**_data, ann_file='annotations/val.json', data_prefix=dict(img='val/')))\n"
        "test_dataloader = val_dataloader\nval_evaluator = dict(outfile_prefix='results/val')\n"
    )
    cfg = config_on(shapes, tmp_path, file, **{'train_dataloader.batch_size': 2})
    for split in ('train', 'val', 'test'):
        for transform in cfg[f'{split}_dataloader'].dataset.pipeline:
            if transform.type == 'Resize':
                transform.scale = (64, 64)
    lines = dry_run(cfg)
    report = '\n'.join(lines)
    assert 'RetinaNet on cpu' in report and 'loss_cls' in report
    assert 'SGD in OptimWrapper, lr 1e-05 at the first step (initially 0.01), LinearLR, MultiStepLR' in report
    # What mmdet's tools do not look at.
    assert suspicions(lines)[-1] == (
        'the learning rate is meant for 16 images a step, and one process takes 2: train with 8 processes, or with '
        '--auto-scale-lr'
    )


SUSPICIOUS = {
    'frozen': (
        {'model.backbone.frozen_stages': 3, 'model.backbone.norm_eval': True},
        'wholly frozen: backbone',
    ),
    'no rate': ({'optim_wrapper.optimizer.lr': 0.0, 'param_scheduler': None}, 'the learning rate is 0'),
    'no gradient': ({'model.head.loss.loss_weight': 0.0}, 'every gradient is 0: nothing is learnt from this batch'),
    'unused': (
        {'model.neck': dict(type='FPN', in_channels=[256], out_channels=256, num_outs=2, add_extra_convs='on_input')},
        r'4 of \d+ trainable parameters got no gradient: neck.lateral_convs.0.conv.weight, '
        r'neck.lateral_convs.0.conv.bias, neck.fpn_convs.0.conv.weight, neck.fpn_convs.0.conv.bias; with .*',
    ),
    'best': (
        {'default_hooks.checkpoint.save_best': 'mAP'},
        "save_best of CheckpointHook is 'mAP', none of the metrics of a batch.*: multi-label/mAP, .* validation .*",
    ),
    'best of any': ({'default_hooks.checkpoint.save_best': 'auto'},),
    'metric': (
        {'custom_hooks.0.metric': 'multi-label/map'},
        "metric of RawAndEMAHook is 'multi-label/map', .* .did you mean 'multi-label/mAP'.*",
    ),
    'misspelt': (
        {'costum_hooks': [], 'load_form': 'x.pth', 'test_pipelines': []},
        "nothing reads 'costum_hooks' of the config: did you mean 'custom_hooks'.",
        "nothing reads 'load_form' of the config: did you mean 'load_from'.",
    ),
    'clip': (
        {'model.head.loss.clip': 0.9},
        r'head.loss_module: all negatives of a batch have p <= clip=0.9, so that nothing is learnt of them; .*',
    ),
    'best of the average': ({'default_hooks.checkpoint.save_best': 'ema/multi-label/mAP'},),
    'scaled': ({'auto_scale_lr': dict(enable=True, base_batch_size=12)},),
    'accumulated': ({'auto_scale_lr': dict(enable=False, base_batch_size=12), 'optim_wrapper.accumulative_counts': 2},),
    'part of a step': (
        {'auto_scale_lr': dict(enable=False, base_batch_size=16)},
        'the learning rate is meant for 16 images a step, and one process takes 6: train with --auto-scale-lr',
    ),
    'processes': (
        {'auto_scale_lr': dict(enable=False, base_batch_size=12)},
        'the learning rate is meant for 12 images a step, and one process takes 6: train with 2 processes, or with '
        '--auto-scale-lr',
    ),
}


@pytest.mark.parametrize('what', SUSPICIOUS)
def test_what_is_suspicious_in_training(shapes, tmp_path, what):
    options, *expected = SUSPICIOUS[what]
    lines = suspicions(dry_run(config_on(shapes, tmp_path, **options)))
    assert len(lines) == len(expected) and all(map(re.fullmatch, expected, lines))


def test_parameters_that_the_optimizer_does_not_have_are_suspicious(shapes, tmp_path, monkeypatch):
    class BackboneAlone(DefaultOptimWrapperConstructor):
        def __call__(self, model):
            return super().__call__(model.backbone)

    monkeypatch.setitem(OPTIM_WRAPPER_CONSTRUCTORS.module_dict, 'BackboneAlone', BackboneAlone)
    (line,) = suspicions(dry_run(config_on(shapes, tmp_path, **{'optim_wrapper.constructor': 'BackboneAlone'})))
    assert re.fullmatch(r'the optimizer does not have 2 trainable parameters: head\.\S+weight, head\.\S+bias', line)


def test_what_is_suspicious_of_a_detector(shapes, tmp_path):
    cfg = config_on(shapes, tmp_path, DETECTOR)
    read = cfg.train_dataloader.dataset
    cfg.val_dataloader.dataset.update(ann_file=(same := read.ann_file), data_prefix=read.data_prefix)
    cfg.val_evaluator.ann_file = f'{shapes}/{same}'
    asl = cfg.model.bbox_head.loss_cls
    cfg.model.type = 'RetinaNet'
    cfg.model.bbox_head = dict(type='FreeAnchorRetinaHead', num_classes=6, in_channels=64, loss_cls=asl)
    cfg.model.neck.update(num_outs=5)
    lines = suspicions(dry_run(cfg))
    assert 'no step called bbox_head.loss_cls, an AsymmetricLoss: FreeAnchorRetinaHead has a loss of its own' in lines
    assert f'train and val both read {shapes}/{same}' in lines


def test_both_losses_of_tood_are_suspicious(shapes, tmp_path):
    """The one is called from the fifth epoch on, with pairs of labels and qualities; both get probabilities."""
    cfg = config_on(shapes, tmp_path, DETECTOR)
    fcos, cfg.model = cfg.model, get_config('mmdet::tood/tood_r50_fpn_1x_coco.py').model
    for part in ('backbone', 'neck', 'data_preprocessor'):
        cfg.model[part] = fcos[part]
    head = cfg.model.bbox_head
    head.update(num_classes=6, in_channels=64, feat_channels=64, stacked_convs=2)
    head.loss_cls = head.initial_loss_cls = fcos.bbox_head.loss_cls
    head.anchor_generator.strides = [8, 16, 32]
    later, probabilities = [line for line in suspicions(dry_run(cfg)) if 'loss_cls' in line]
    assert re.match('no step called bbox_head.loss_cls, .*: TOODHead may call it later, after initial_epoch=4,', later)
    assert 'bbox_head.initial_loss_cls: AsymmetricLoss takes logits, and TOODHead gives it prob' in probabilities


def test_pictures_of_a_detector_in_both_splits_are_suspicious(shapes, tmp_path):
    data = tmp_path / 'data'
    shutil.copytree(shapes, data)
    content = json.loads((data / 'annotations/train.json').read_text())
    content['images'] = content['images'][2:5]
    kept = {entry['id'] for entry in content['images']}
    content['annotations'] = [entry for entry in content['annotations'] if entry['image_id'] in kept]
    (data / 'annotations/val.json').write_text(json.dumps(content))
    (data / 'link').symlink_to('train')
    cfg = config_on(data, tmp_path, DETECTOR, **{'val_dataloader.dataset.data_prefix.img': 'link/'})
    lines = [line for line in suspicions(dry_run(cfg)) if 'also in' in line]
    assert lines == [f'3 of 3 images of val are also in train, such as {data.resolve()}/train/000003.png']


def test_sizes_in_the_annotations_of_a_detector_are_compared_with_the_pictures(shapes, tmp_path):
    data = tmp_path / 'data'
    shutil.copytree(shapes, data)
    path = data / 'annotations/val.json'
    content = json.loads(path.read_text())
    height, width = cv2.imread(str(data / 'val/000001.png')).shape[:2]
    content['images'][0].update(width=width - 5)
    path.write_text(json.dumps(content))
    lines = [line for line in suspicions(dry_run(config_on(data, tmp_path, DETECTOR))) if 'pixels' in line]
    assert lines == [
        f'val: {data}/val/000001.png has {width} x {height} pixels, and width {width - 5}, height {height} in the '
        'annotations, which boxes are cut off by (1 of 6 images)'
    ]


def test_a_detector_may_have_images_of_several_sizes():
    assert _suspicious_sizes(torch.nn.Identity(), dict(train=SimpleNamespace(sizes={(48, 64), (64, 48)}))) == []


def test_pictures_that_lie_the_other_way_round_are_told_as_such():
    seen = dict(val=SimpleNamespace(read={'a.png': (48, 64), 'b.png': (48, 64)}))
    assert _wrong_sizes(dict(val={'a.png': (64, 48), 'b.png': (48, 64)}), seen) == [
        'val: a.png has 64 x 48 pixels, the other way round, as EXIF data turn it, and width 48, height 64 in the '
        'annotations, which boxes are cut off by (1 of 2 images)'
    ]


def test_what_is_suspicious_in_data_and_work_dir(shapes, tmp_path):
    """A class of which there is nothing, the same images in both splits, and a run that was begun."""
    data = tmp_path / 'data'
    shutil.copytree(shapes, data)
    path = data / 'annotations/val.json'
    content = json.loads(path.read_text())
    content['annotations'] = [entry for entry in content['annotations'] if entry['category_id'] != 2]
    path.write_text(json.dumps(content))
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work/epoch_1.pth').touch()
    cfg = config_on(data, tmp_path)
    cfg.train_dataloader.dataset.update(ann_file='annotations/val.json', data_prefix=dict(img_path='val/'))
    with pytest.raises(DryRunError, match='training: 6 images of .*val.json .* are also in .*val.json'):
        dry_run(cfg)
    cfg.custom_hooks, cfg.check_data = [], False
    missing, other, overlap, begun = suspicions(dry_run(cfg))
    assert (missing, other) == ('train: no image has ring', 'val: no image has ring')
    assert re.search('6 images of .*val.json .* are also in', overlap)
    assert begun.startswith(f'{tmp_path}/work holds checkpoints')
    assert [path.name for path in (tmp_path / 'work').iterdir()] == ['epoch_1.pth']


def test_training_data_without_negatives_are_suspicious(shapes, tmp_path):
    cfg = config_on(shapes, tmp_path)
    cfg.train_dataloader.dataset.untagged_weight = 0.0
    lines = suspicions(dry_run(cfg))
    assert [line for line in lines if line.startswith('train: no class of any image counts as negative')], lines


def test_images_of_several_sizes_are_suspicious_in_a_classifier(shapes, tmp_path):
    data = tmp_path / 'data'
    shutil.copytree(shapes, data)
    path = next((data / 'train').glob('000001.*'))
    cv2.imwrite(str(path), cv2.imread(str(path))[:48])
    assert suspicions(dry_run(config_on(data, tmp_path))) == [
        'train: images of a batch have 2 sizes, so that scores depend on how they are padded to one: put a Resize to '
        'one size into the pipeline'
    ]


def test_a_validation_without_labels_is_refused(shapes, tmp_path):
    data = tmp_path / 'data'
    shutil.copytree(shapes, data)
    path = data / 'annotations/val.json'
    path.write_text(json.dumps(dict(json.loads(path.read_text()), annotations=[])))
    with pytest.raises(DryRunError, match=r'training: \S+val.json: none of \d+ images has a label, .* nothing to meas'):
        dry_run(config_on(data, tmp_path))
    cfg = config_on(data, tmp_path, check_data=False)
    assert suspicions(dry_run(cfg))[0] == 'val: no image has any label'


FAULTS = {
    'model': ({'model.head.num_class': 3}, r"building the model, .*: TypeError: .*'num_class'.* \(\S+.py, line \d+\)"),
    'type': (
        {'model.backbone.type': 'TResNot'},
        r"building the model, .*: KeyError: .*TResNot.* .did you mean 'TResNet'.\)",
    ),
    'head': ({'model.head.num_classes': 5}, 'training: .*has 6 classes .* num_classes=5'),
    'no data': ({'train_dataloader.dataset.ann_file': 'x.json'}, 'building the train data: .*x.json does not exist'),
    'metric': ({'val_evaluator.items': ('mAQ',)}, "building the val data: ValueError: items=.*'mAQ'"),
    'optimizer': (
        {'optim_wrapper.optimizer.lr': -1.0, 'param_scheduler': None},
        'building the optimizer and its schedule.*: .*rate: -1.0',
    ),
    'weights': ({'load_from': 'none.pth'}, 'loading weights: .*none.pth'),
    'null': ({'visualizer': None, 'auto_scale_lr': None, 'optim_wrapper.optimizer.lr': -1.0}, 'rate: -1.0'),
    'NaN': ({'model.data_preprocessor.std': [0.0] * 3}, r'step 1: loss is nan. Images: \S+train/000001.png, '),
    'nothing': ({'train_dataloader': None, 'train_cfg': None, 'optim_wrapper': None}, 'no train_cfg'),
}


@pytest.mark.parametrize('what', FAULTS)
def test_what_cannot_be_trained_is_told_in_one_line(shapes, tmp_path, what):
    options, message = FAULTS[what]
    with pytest.raises(DryRunError, match=message) as error:
        dry_run(config_on(shapes, tmp_path, **options))
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'work').exists() and not list(tmp_path.iterdir())


@pytest.mark.parametrize('workers', [0, 1])
def test_a_picture_that_cannot_be_read_is_named(shapes, tmp_path, workers):
    data = tmp_path / 'data'
    shutil.copytree(shapes, data)
    (data / 'val/000001.png').write_bytes(b'')
    cfg = config_on(data, tmp_path, **{'val_dataloader.num_workers': workers})
    with pytest.raises(DryRunError, match=r'^evaluating a batch: \S+/val/000001.png of .* cannot be read: the file is'):
        dry_run(cfg)


@pytest.mark.parametrize('workers', [0, 1])
def test_a_picture_that_a_detectors_pipeline_fails_on_is_named(shapes, tmp_path, workers):
    data = tmp_path / 'data'
    shutil.copytree(shapes, data)
    cv2.imwrite(str(data / 'train/000001.png'), np.zeros((900, 3, 3), dtype=np.uint8))
    cfg = config_on(data, tmp_path, DETECTOR, **{'train_dataloader.num_workers': workers})
    cfg.train_dataloader.dataset.pipeline.insert(1, dict(type='Resize', scale=(64, 64), keep_ratio=True))
    with pytest.raises(DryRunError, match=r"^training: \S+/train/000001.png cannot be prepared: .*function 'resize'$"):
        dry_run(cfg)


def test_iterations_and_no_evaluation(shapes, tmp_path):
    cfg = config_on(
        shapes,
        tmp_path,
        param_scheduler=None,
    )
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=700, val_interval=100)
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=False)
    report = '\n'.join(dry_run(cfg))
    assert re.search(r'700 steps, 7 evaluations of ', report) and 'an epoch' not in report
    for split in ('val', 'test'):
        for key in ('dataloader', 'evaluator', 'cfg'):
            cfg[f'{split}_{key}'] = None
    cfg.custom_hooks = []
    lines = dry_run(cfg)
    assert 'evaluation  none: the config has no val_cfg' in lines and not [line for line in lines if line[:3] == 'val']
    assert re.search(r' 700 steps: [\d:.]+( s)? in all', '\n'.join(lines))


def test_evaluations_begin_at_an_epoch_and_end_with_the_last(shapes, tmp_path):
    cfg = config_on(shapes, tmp_path)
    cfg.train_cfg.update(max_epochs=7, val_begin=3, val_interval=3)
    cfg.train_dataloader.batch_size = 2
    report = '\n'.join(dry_run(cfg))
    assert ' 56 steps, 3 evaluations of ' in report and '(median of 6 behind the first)' in report


def test_the_time_in_all_is_that_of_steps_and_evaluations():
    loops = dict(train=SimpleNamespace(max_iters=700, val_interval=100), val=SimpleNamespace(dataloader=range(20)))
    trained = SimpleNamespace(seconds=[9.0, 2.0, 2.5, 1.0], waited=[5.0, 0.5, 0.1, 0.2])
    assert _describe_cost(loops, trained, SimpleNamespace(seconds=3.0))[1:] == [
        'time        2.000 s a step (median of 3 behind the first), 0.200 s of it waiting for data',
        '            700 steps, 7 evaluations of 0:01:00 each (from its first batch): 0:30:20 in all',
    ]


def test_backends_that_write_elsewhere_are_not_started(shapes, tmp_path):
    cfg = config_on(shapes, tmp_path)
    cfg.visualizer.vis_backends = (  # mmengine takes a tuple as well
        dict(type='LocalVisBackend', save_dir=str(tmp_path / 'elsewhere')),
        dict(type='WandbVisBackend', init_kwargs=dict(project='mine')),
    )
    assert 'not started WandbVisBackend: they would write elsewhere' in dry_run(cfg)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('num_classes', [6, 'six'])
def test_no_thread_writes_into_the_folder_that_is_removed(shapes, tmp_path, num_classes):
    """TensorBoard's writer ends, also where the model could not be built once the visualizer was there."""
    cfg = config_on(shapes, tmp_path, **{'model.head.num_classes': num_classes})
    before = set(threading.enumerate())
    with contextlib.nullcontext() if num_classes == 6 else pytest.raises(DryRunError, match='building the model'):
        dry_run(cfg)
    assert set(threading.enumerate()) <= before


def test_hooks_of_others_may_have_a_metric_of_any_kind(shapes, tmp_path, monkeypatch):
    class Own(Hook):
        metric = save_best = object()

    # By name: mmengine 0.10.4 cannot write a config that holds a class.
    monkeypatch.setitem(HOOKS.module_dict, 'OwnMetricHook', Own)
    cfg = config_on(shapes, tmp_path, custom_hooks=[dict(type='OwnMetricHook')])
    assert not [line for line in suspicions(dry_run(cfg)) if 'metric' in line]
