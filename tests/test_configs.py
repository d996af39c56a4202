"""Every config in the repo: parsed, built and run for one step of training on the CPU, and for one of evaluation."""

import json

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.runner import Runner

from tests.conftest import ROOT

CONFIGS = sorted(
    str(path.relative_to(ROOT / 'configs'))
    for path in (ROOT / 'configs').glob('*/*.py')
    if path.parent.name != '_base_'
)
DETECTION = [name for name in CONFIGS if name.split('/')[0] in ('fcos', 'atss')]


@pytest.fixture(scope='module')
def coco_folder(tmp_path_factory):
    """COCO 2017's layout with 48 pictures of 64 x 48 pixels to train on and 2 to evaluate on."""
    root = tmp_path_factory.mktemp('coco')
    (root / 'annotations').mkdir()
    rng = np.random.default_rng(0)
    coco_ids = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
    from mmdet.datasets import CocoDataset

    categories = [dict(id=i, name=name) for i, name in zip(coco_ids, CocoDataset.METAINFO['classes'])]
    for split, count in (('train2017', 48), ('val2017', 2)):
        (root / split).mkdir()
        images, annotations = [], []
        for i in range(1, count + 1):
            name = f'{i:012d}.jpg'
            cv2.imwrite(str(root / split / name), rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))
            images.append(dict(id=i, file_name=name, width=64, height=48))
            annotations.append(
                dict(id=i, image_id=i, category_id=coco_ids[i % 80], bbox=[4, 5, 40, 36], area=1440, iscrowd=0)
            )
        content = dict(images=images, annotations=annotations, categories=categories)
        (root / f'annotations/instances_{split}.json').write_text(json.dumps(content))
    return root


def test_the_recipes_of_appendix_h_are_all_here():
    recipes = {
        f'{kind}/{kind}_tresnet-m_fpn_{loss}_8xb6-70e_coco.py'
        for kind in ('fcos', 'atss')
        for loss in ('focal', 'asl', 'asl-alpha')
    }
    assert recipes <= set(CONFIGS)
    for name in sorted(recipes):
        cfg = Config.fromfile(ROOT / 'configs' / name)
        assert cfg.custom_imports == dict(imports=['asl_mmdet'], allow_failed_imports=False)
        assert cfg.model.backbone.type == 'TResNet' and cfg.model.backbone.arch == 'm'
        assert cfg.model.data_preprocessor.mean == [0] * 3 and cfg.model.data_preprocessor.std == [255] * 3
        assert cfg.model.data_preprocessor.bgr_to_rgb is True
        optimizer = {key: cfg.optim_wrapper.optimizer[key] for key in ('type', 'lr', 'momentum', 'weight_decay')}
        assert optimizer == dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4)
        assert cfg.train_cfg.max_epochs == 70 and cfg.auto_scale_lr.base_batch_size == 48
        assert cfg.train_dataloader.batch_size * 8 == 48
        warm_up, steps = cfg.param_scheduler
        assert warm_up.type == 'LinearLR' and warm_up.by_epoch is False
        assert steps.type == 'MultiStepLR' and steps.milestones == [40, 60] and steps.gamma == 0.1
        loss = {
            key: value for key, value in cfg.model.bbox_head.loss_cls.items() if key not in ('loss_weight', '_scope_')
        }
        asl = dict(type='AsymmetricLoss', use_sigmoid=True, gamma_pos=1.0, gamma_neg=2.0, clip=0.0)
        assert (
            loss
            == {
                'focal': dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25),
                'asl': asl,
                'asl-alpha': dict(asl, alpha=0.25),
            }[name.split('_')[3]]
        )
        if name.startswith('fcos'):
            head = cfg.model.bbox_head
            assert (
                head.center_sampling
                and head.norm_on_bbox
                and head.centerness_on_reg
                and head.loss_bbox.type == 'GIoULoss'
            )


@pytest.mark.parametrize('name', DETECTION)
def test_a_detection_config_trains_a_step_and_evaluates(name, coco_folder, shapes, tmp_path):
    cfg = Config.fromfile(ROOT / 'configs' / name)
    cfg.work_dir = str(tmp_path)
    cfg.model.backbone.init_cfg = None
    cfg.model.test_cfg.update(score_thr=0.0, nms_pre=50)
    on_shapes = name.endswith('_shapes.py')
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.data_root = f'{shapes if on_shapes else coco_folder}/'
        loader.dataset.indices = 2
        for transform in loader.dataset.pipeline:
            if transform.type == 'Resize':
                transform.scale = (96, 64)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = evaluator.ann_file.replace('data/shapes', str(shapes)).replace(
            'data/coco', str(coco_folder)
        )
    cfg.train_cfg.update(max_epochs=1, val_interval=2)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=-1)
    cfg.experiment_name = name.replace('/', '_')
    runner = Runner.from_cfg(cfg)
    before = {key: value.clone() for key, value in runner.model.named_parameters() if value.requires_grad}
    runner.train()
    assert runner.iter == 1
    moved = {key for key, value in runner.model.named_parameters() if key in before and not value.equal(before[key])}
    assert 'bbox_head.conv_cls.weight' in moved or 'bbox_head.atss_cls.weight' in moved
    assert any(key.startswith('backbone.') for key in moved)
    assert all(value.isfinite().all() for value in runner.model.parameters())
    assert 'coco/bbox_mAP' in runner.val()


def test_missing_weights_are_explained():
    cfg = Config.fromfile(ROOT / 'configs/fcos/fcos_tresnet-m_fpn_asl_8xb6-70e_coco.py')
    from mmdet.registry import MODELS

    model = MODELS.build(cfg.model)
    with pytest.raises(FileNotFoundError) as error:
        model.init_weights()
    message = str(error.value)
    assert 'checkpoints/tresnet_m.pth' in message and 'init_cfg=None' in message
