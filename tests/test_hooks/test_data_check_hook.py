import os
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, HOOKS, MODELS
from mmengine.config import Config
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.hub import get_config
from mmengine.runner import Runner
from torch import nn

from asl_mmdet.datasets import AnnotationError, CSVMultiLabelDataset
from asl_mmdet.hooks import check_no_overlap, check_num_classes
from asl_mmdet.models import ImageClassifier
from tests.conftest import ROOT


def table(folder, rows, name='table.csv', **kwargs):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text('\n'.join(['image,labels', *rows, '']))
    return CSVMultiLabelDataset(ann_file=name, data_root=str(folder), **kwargs)


def test_overlap_is_found_through_links_and_different_prefixes(tmp_path, pictures):
    pictures(tmp_path / 'all', ['x/a.jpg', 'x/b.jpg', 'y/c.jpg'])
    os.symlink(tmp_path / 'all/x', tmp_path / 'link')
    folders = dict(all=dict(img_path=str(tmp_path / 'all')), link=dict(img_path=str(tmp_path / 'link')))
    train = table(tmp_path / 'one', ['x/a.jpg,dog', 'y/c.jpg,dog'], data_prefix=folders['all'])
    apart = table(tmp_path / 'two', ['./b.jpg,dog'], data_prefix=folders['link'])
    leaks = table(tmp_path / 'three', ['.//a.jpg,dog', 'b.jpg,dog'], data_prefix=folders['link'])
    check_no_overlap(train, apart)
    with pytest.raises(AnnotationError, match='1 images of .*three/table.csv .* are also in .*one/table.csv'):
        check_no_overlap(train, leaks)
    with pytest.raises(AnnotationError, match='are also in'):
        check_no_overlap(ConcatDataset([apart, train]), RepeatDataset(leaks, 2))


def test_overlap_is_found_where_files_name_images_outside_their_folders(tmp_path, pictures):
    pictures(tmp_path / 'all', ['a.jpg', 'b.jpg', 'c.jpg'])
    train = table(tmp_path / 'one', ['../all/a.jpg,dog', f'{tmp_path}/all/b.jpg,dog'], allow_outside=True)
    check_no_overlap(train, table(tmp_path / 'two', ['../all/c.jpg,dog'], allow_outside=True))
    for name in ('../all/a.jpg', '../all/b.jpg'):
        with pytest.raises(AnnotationError, match='1 images of .*three/table.csv .* are also in .*one/table.csv'):
            check_no_overlap(train, table(tmp_path / 'three', [f'{name},dog'], allow_outside=True))


def test_the_two_parts_of_a_file_do_not_overlap(tmp_path, pictures):
    names = [f'im{i}.jpg' for i in range(40)]
    pictures(tmp_path, names)
    parts = [
        table(tmp_path, [f'{name},dog' for name in names], holdout=dict(fraction=0.3, part=part))
        for part in ('train', 'val')
    ]
    check_no_overlap(*parts)


def test_both_sets_number_their_classes_alike(tmp_path, pictures):
    pictures(tmp_path, ['a.jpg', 'b.jpg'])
    a = table(tmp_path, ['a.jpg,cat;tree'], 'a.csv')
    b = table(tmp_path, ['b.jpg,cat;dog;tree'], 'b.csv')
    with pytest.raises(AnnotationError, match="differ in class 1: 'tree' and 'dog'"):
        check_no_overlap(a, b)


def test_heads_have_as_many_classes_as_the_data_set(tmp_path, pictures):
    pictures(tmp_path, ['a.jpg'])
    dataset = table(tmp_path, ['a.jpg,cat;dog;tree'])

    def detector(num_classes):
        """A detector's names: its first stage tells objects from background only."""
        model = nn.Module()
        for name, count in (('rpn_head', 1), ('semantic_head', 183), ('roi_head', None), ('bbox_head', num_classes)):
            head = nn.Module()
            if count is not None:
                head.num_classes = count
            model.add_module(name, head)
        return model

    check_num_classes(detector(3), dataset)
    with pytest.raises(
        AnnotationError,
        match=r'table.csv has 3 classes \(cat, dog, tree\), but Module has num_classes=80: set '
        r'model.bbox_head.num_classes=3, or choose 80 classes',
    ):
        check_num_classes(detector(80), RepeatDataset(dataset, 2))
    with pytest.raises(AnnotationError, match='set model.bbox_head.num_classes=3'):
        check_num_classes(nn.DataParallel(detector(80)), dataset)
    cascade = detector(3)
    cascade.bbox_head = nn.ModuleList(detector(count).bbox_head for count in (3, 80, 3))
    with pytest.raises(AnnotationError, match=r'set model.bbox_head.1.num_classes=3'):
        check_num_classes(cascade, dataset)


def test_heads_with_classes_of_their_own_are_left_alone(tmp_path, pictures):
    pictures(tmp_path, ['a.jpg'])
    dataset = table(tmp_path, ['a.jpg,cat;dog;tree'])

    def model(path, **attributes):
        """A head at a dotted path."""
        root = module = nn.Module()
        for name in path.split('.'):
            module.add_module(name, nn.Module())
            module = getattr(module, name)
        vars(module).update(dict(num_classes=80) | attributes)
        return root

    for path, attributes in (('reid.head', {}), ('roi_head.mask_head', dict(class_agnostic=True)), ('head', {})):
        if path == 'head':
            with pytest.raises(AnnotationError, match='num_classes=80: set model.head.num_classes=3'):
                check_num_classes(model(path, **attributes), dataset)
        else:
            check_num_classes(model(path, **attributes), dataset)
    by_words = model('bbox_head')
    by_words.language_model = nn.Identity()
    check_num_classes(by_words, dataset)
    dataset._metainfo['thing_classes'] = ('cat', 'dog')
    check_num_classes(model('head'), dataset)


def test_an_rpn_by_itself_has_one_class_whatever_the_data_have(tmp_path, pictures):
    pictures(tmp_path, ['a.jpg'])
    cfg = get_config('mmdet::rpn/rpn_r50_fpn_1x_coco.py').model
    cfg.backbone.init_cfg = cfg.data_preprocessor = None
    with torch.device('meta'):
        model = MODELS.build(cfg)
    assert model.bbox_head.num_classes == 1
    check_num_classes(model, table(tmp_path, ['a.jpg,cat;dog;tree']))


@pytest.fixture
def runner(tmp_path, pictures):
    """A run on a table of images, of which the first two are trained on."""
    names = [f'{i}.jpg' for i in range(4)]
    pictures(tmp_path, names)
    rows = [f'{name},{label}' for name, label in zip(names, ('cat', 'dog', 'cat', 'dog'))]

    def make(chosen, num_classes=2):
        def loader(chosen):
            (tmp_path / f'{chosen}.csv').write_text('\n'.join(['image,labels', *(rows[i] for i in chosen), '']))
            dataset = dict(
                type='CSVMultiLabelDataset',
                ann_file=f'{chosen}.csv',
                data_root=str(tmp_path),
                metainfo=dict(classes=('cat', 'dog')),
                pipeline=[dict(type='LoadImageFromFile'), dict(type='PackMultiLabelInputs')],
            )
            sampler = dict(type='DefaultSampler', shuffle=False)
            return dict(batch_size=1, num_workers=0, dataset=dataset, sampler=sampler)

        backbone = dict(type='ResNet', depth=18, base_channels=2, num_stages=1, strides=(1,), dilations=(1,))
        head = dict(type='MultiLabelLinearClsHead', num_classes=num_classes, in_channels=2)
        head['loss'] = dict(type='AsymmetricLoss')
        return Runner(
            ImageClassifier(dict(backbone, out_indices=(0,), norm_eval=False), head),
            str(tmp_path / 'work'),
            train_dataloader=loader((0, 1)),
            val_dataloader=loader(chosen),
            test_dataloader=loader(chosen),
            train_cfg=dict(by_epoch=True, max_epochs=1, val_interval=1),
            val_cfg=dict(),
            test_cfg=dict(),
            val_evaluator=dict(type='MultiLabelMetric'),
            test_evaluator=dict(type='MultiLabelMetric'),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            custom_hooks=[dict(type='DataCheckHook')],
            default_hooks=dict(checkpoint=None, logger=None),
            default_scope='mmdet',
            experiment_name=f'{chosen}{num_classes}{tmp_path.name}',
            log_level='ERROR',
        )

    return make


def test_a_run_on_good_data_is_left_alone(runner):
    run = runner((2, 3))
    run.train()
    assert run.iter == 2
    assert run.test().keys() >= {'multi-label/mAP'}


def test_overlap_stops_a_run_before_its_first_step(runner):
    run = runner((1, 2))
    seen = []
    run.model.backbone.register_forward_hook(lambda *_: seen.append(1))
    with pytest.raises(AnnotationError, match='1 images of .* are also in'):
        run.train()
    assert not seen


@pytest.mark.parametrize('step', ['train', 'val', 'test'])
def test_a_head_of_another_size_stops_a_run_before_its_first_step(runner, step):
    run = runner((2, 3), num_classes=5)
    seen = []
    run.model.backbone.register_forward_hook(lambda *_: seen.append(1))
    with pytest.raises(AnnotationError, match='csv has 2 classes .* model.head.num_classes=2'):
        getattr(run, step)()
    assert not seen


def test_a_picture_that_a_detectors_pipeline_fails_on_is_named(shapes, tmp_path):
    shutil.copytree(shapes, tmp_path / 'data')
    cv2.imwrite(str(tmp_path / 'data/train/000001.png'), np.zeros((900, 3, 3), dtype=np.uint8))
    config = Config.fromfile(ROOT / 'configs/fcos/fcos_tresnet-narrow_fpn_asl_shapes.py').train_dataloader.dataset
    config.update(data_root=f'{tmp_path}/data/', filter_cfg=None)
    config.pipeline.insert(1, dict(type='Resize', scale=(64, 64), keep_ratio=True))
    dataset = RepeatDataset(DATASETS.build(config), 1)
    training = SimpleNamespace(model=nn.Module(), train_dataloader=SimpleNamespace(dataset=dataset), val_loop=None)
    HOOKS.build(dict(type='DataCheckHook')).before_train(training)
    with pytest.raises(AnnotationError, match=r"/train/000001.png cannot be prepared: .*function 'resize'$"):
        [dataset[i] for i in range(len(dataset))]
