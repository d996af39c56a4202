"""Every config in the repo: parsed, built, run for a step or a few of training on the CPU, and evaluated."""

import json
import re

import cv2
import numpy as np
import pytest
import yaml
from mmdet.datasets import CocoDataset
from mmdet.registry import HOOKS, METRICS, MODELS
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from tests.conftest import ROOT

CONFIGS = sorted(
    str(path.relative_to(ROOT / 'configs'))
    for path in (ROOT / 'configs').glob('*/*.py')
    if not path.parent.name.startswith('_')
)
CLASSIFICATION = [name for name in CONFIGS if name.split('/')[0] in ('multi_label', 'single_label')]
DETECTION = [name for name in CONFIGS if name.split('/')[0] in ('fcos', 'atss')]


@pytest.mark.parametrize('name', CLASSIFICATION)
def test_what_is_evaluated_is_what_the_head_decides(name):
    cfg = Config.fromfile(ROOT / 'configs' / name)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        if cfg.model.head.get('thr'):
            assert evaluator.get('thr', 0.5) == cfg.model.head.thr


@pytest.mark.parametrize('name', CONFIGS)
def test_hooks_as_they_are(name, monkeypatch):
    cfg = Config.fromfile(ROOT / 'configs' / name)
    # The Runner builds it before its hooks; one that stays would be that of later Runners here.
    monkeypatch.setitem(Visualizer._instance_dict, 'hooks', Visualizer('hooks'))
    for hook in (*cfg.default_hooks.values(), *cfg.get('custom_hooks', ())):
        HOOKS.build(hook)
    assert cfg.default_hooks.checkpoint.save_best or 'shapes' in name


@pytest.mark.parametrize('name', CONFIGS)
def test_runs_in_one_process_have_visualizers_of_their_own(name):
    """mmengine names it by the run where the config does not, and the second one of a name is the first one."""
    visualizer = Config.fromfile(ROOT / 'configs' / name).visualizer
    assert 'name' not in visualizer and [one.type for one in visualizer.vis_backends][-1] == 'TensorboardVisBackend'


@pytest.mark.parametrize('name', CONFIGS)
def test_the_batch_that_the_learning_rate_is_meant_for(name):
    cfg = Config.fromfile(ROOT / 'configs' / name)
    processes = re.search(r'_(\d+)xb', name)
    images = cfg.train_dataloader.batch_size * int(processes[1] if processes else 1)
    assert cfg.get('auto_scale_lr', {}).get('base_batch_size', images) == images


def test_the_figures_of_the_model_index_come_from_the_evaluators():
    names = {'macro mAP': 'mAP', 'micro mAP': 'mAP_micro', 'macro F1': 'macro_F1'}
    figures = 0
    for path in (ROOT / 'configs').glob('*_label/metafile.yml'):
        for model in yaml.safe_load(path.read_text())['Models']:
            metric = METRICS.build(Config.fromfile(ROOT / model['Config']).test_evaluator)
            for result in model.get('Results', ()):
                for figure in result['Metrics']:
                    figure = figure.removesuffix(' (paper)')
                    assert names.get(figure, figure) in metric.items, (model['Name'], figure)
                    figures += 1
    assert figures > 30


def write_pictures(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in names:
        cv2.imwrite(str(folder / name), rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))


def write_coco(root, split, names):
    """Every picture shows one class: the next of the 80, at one place."""
    coco_ids = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
    write_pictures(root / split, names)
    box = dict(bbox=[4, 5, 40, 36], area=1440, iscrowd=0)
    content = dict(
        images=[dict(id=i, file_name=name, width=64, height=48) for i, name in enumerate(names, 1)],
        annotations=[dict(id=i, image_id=i, category_id=coco_ids[i % 80], **box) for i in range(1, len(names) + 1)],
        categories=[dict(id=i, name=name) for i, name in zip(coco_ids, CocoDataset.METAINFO['classes'])],
    )
    (root / 'annotations').mkdir(exist_ok=True)
    (root / f'annotations/instances_{split}.json').write_text(json.dumps(content))


@pytest.fixture(scope='module')
def coco_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('coco')
    for split, count in (('train2017', 48), ('val2017', 2)):
        write_coco(root, split, [f'{i:012d}.jpg' for i in range(1, count + 1)])
    return root


@pytest.fixture(scope='module')
def data_folder(tmp_path_factory):
    """data/ of the classification recipes: each data set as its owners publish it, with two pictures a split."""
    root = tmp_path_factory.mktemp('data')
    for split in ('train2014', 'val2014'):
        write_coco(root / 'coco', split, [f'{split}_{i}.jpg' for i in (1, 2)])

    voc = root / 'VOCdevkit/VOC2007'
    for folder in ('ImageSets/Main', 'Annotations'):
        (voc / folder).mkdir(parents=True)
    for split, ids in (('trainval', ['000005', '000007']), ('test', ['000001', '000002'])):
        write_pictures(voc / 'JPEGImages', [f'{i}.jpg' for i in ids])
        (voc / f'ImageSets/Main/{split}.txt').write_text('\n'.join(ids))
        for i, name in zip(ids, ('dog', 'chair')):
            thing = f'<object><name>{name}</name><difficult>0</difficult></object>'
            (voc / f'Annotations/{i}.xml').write_text(f'<annotation>{thing}</annotation>')

    names = ['a.jpg', 'b.jpg', 'c.jpg', 'd.jpg']
    write_pictures(root / 'nus_wide/images', names)
    rows = [
        f"images/{name},['{label}'],{split}"
        for name, label, split in zip(names, ('sky', 'clouds', 'sky', 'water'), ('train', 'train', 'val', 'val'))
    ]
    (root / 'nus_wide/nus_wid_data.csv').write_text('\n'.join(['filepath,label,split_name', *rows, '']))

    open_images = root / 'open_images'
    for split, prefix in (('train', 'oidv6-train'), ('test', 'test')):
        ids = [f'{len(split)}{i:015x}' for i in (1, 2)]
        write_pictures(open_images / split, [f'{i}.jpg' for i in ids])
        rows = [f'{ids[0]},verification,/m/01,1', f'{ids[1]},verification,/m/01,0', f'{ids[1]},verification,/m/02,1']
        header = 'ImageID,Source,LabelName,Confidence'
        (open_images / f'{prefix}-annotations-human-imagelabels.csv').write_text('\n'.join([header, *rows, '']))
    descriptions = ['LabelName,DisplayName', '/m/01,Person', '/m/02,Tree', '/m/03,Sky', '']
    (open_images / 'oidv6-class-descriptions.csv').write_text('\n'.join(descriptions))
    (open_images / 'oidv6-classes-trainable.txt').write_text('/m/01\n/m/02\n/m/03\n')

    names = [f'{i}.jpg' for i in range(8)]
    write_pictures(root / 'herbarium/train', names)
    content = dict(
        images=[dict(id=i, file_name=name) for i, name in enumerate(names)],
        annotations=[dict(id=i, image_id=i, category_id=10 + i % 3) for i in range(len(names))],
        categories=[dict(id=10 + i, name=f'species {i}') for i in range(3)],
    )
    (root / 'herbarium/train/metadata.json').write_text(json.dumps(content))

    names = [f'im{i}.jpg' for i in range(8)]
    write_pictures(root / 'mirflickr14/images', names)
    rows = [f'{name},{label}' for name, label in zip(names, 4 * ('sea', 'sky;tree'))]
    (root / 'mirflickr14/train.csv').write_text('\n'.join(['image,labels', *rows, '']))
    (root / 'mirflickr14/classes.txt').write_text('sea\nsky\ntree\n')
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


@pytest.mark.parametrize(
    'recipe',
    [
        *('multi_label/tresnet-l_{}_8xb16-60e_coco2014-448.py', 'multi_label/resnet101_{}_8xb16-60e_coco2014-448.py'),
        *(f'multi_label/tresnet-m_{{}}_8xb16-60e_coco2014-{size}.py' for size in (224, 448)),
        'multi_label/tresnet-v2-l_{}_8xb16-60e_coco2014-640.py',
        'multi_label/ofa595_{}_8xb16-60e_coco2014-448.py',
        *(f'multi_label/tresnet-l_{{}}_8xb16-60e_voc2007-448{start}.py' for start in ('', '-from-coco')),
        'multi_label/tresnet-l_{}_8xb16-60e_nus-wide-448.py',
        *(f'multi_label/tresnet-l_{{}}_8xb16-{rest}.py' for rest in ('30e_open-images-224', '5e_open-images-448')),
        'single_label/tresnet-l_{}_8xb16-60e_herbarium-448.py',
    ],
)
def test_recipes_differ_from_their_twins_in_the_loss_alone(recipe):
    asl, *twins = (Config.fromfile(ROOT / 'configs' / recipe.format(loss)) for loss in ('asl', 'ce', 'focal'))
    gamma = 4.0 if 'open-images' in recipe else 2.0
    for twin, setting in zip(twins, (dict(gamma_neg=0.0), dict(gamma_pos=gamma, gamma_neg=gamma))):
        asl.model.head.loss.update(gamma_pos=0.0, clip=0.0)
        asl.model.head.loss.update(setting)
        same = {*asl, *twin} - {'load_from'}
        assert {key: twin.get(key) for key in same} == {key: asl.get(key) for key in same}


@pytest.mark.parametrize('name', DETECTION)
def test_a_detection_config_trains_a_step_and_evaluates(name, coco_folder, shapes, tmp_path):
    cfg = Config.fromfile(ROOT / 'configs' / name)
    cfg.work_dir = str(tmp_path)
    cfg.model.backbone.init_cfg = None
    cfg.model.test_cfg.update(score_thr=0.0, nms_pre=50)
    on_shapes = 'shapes' in name
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
    if on_shapes:
        cfg.param_scheduler[0].update(end=20)  # of one iteration each
    cfg.train_cfg.update(max_epochs=1, val_interval=2)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=-1, save_last=False)
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


@pytest.mark.parametrize('name', CLASSIFICATION)
def test_a_classification_config_trains_and_evaluates(name, data_folder, shapes, tmp_path):
    cfg = Config.fromfile(ROOT / 'configs' / name)
    cfg.work_dir = str(tmp_path)
    cfg.load_from = None
    cfg.model.backbone.init_cfg = None
    cfg.optim_wrapper.type = 'OptimWrapper'  # AmpOptimWrapper wants a GPU
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=1, num_workers=0, persistent_workers=False)
        folder = loader.dataset.data_root
        loader.dataset.data_root = f'{shapes}/' if 'shapes' in name else folder.replace('data', str(data_folder), 1)
        loader.dataset.pop('expected_images', None)
        if 'holdout' in loader.dataset:
            loader.dataset.holdout.fraction = 0.5
        if isinstance(loader.dataset.get('metainfo', {}).get('classes'), str):
            loader.dataset.metainfo.classes = loader.dataset.metainfo.classes.replace('data', str(data_folder), 1)
        for step in loader.dataset.pipeline:
            if step.type == 'Resize':
                step.scale = (64, 64)
    if any(data in name for data in ('open-images', 'herbarium', 'mirflickr14')):
        cfg.model.head.num_classes = 3
    cfg.train_cfg.max_epochs = 1
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=-1, save_last=False)
    cfg.experiment_name = name.replace('/', '_')
    runner = Runner.from_cfg(cfg)
    runner.model.init_weights()
    before = {key: value.clone() for key, value in runner.model.named_parameters()}
    runner.train()
    assert runner.iter == len(runner.train_dataloader) > 1
    assert all(value.isfinite().all() for value in runner.model.parameters())
    moved = [key for key, value in runner.model.named_parameters() if not value.equal(before[key])]
    assert any(key.startswith('head.') for key in moved) and any(key.startswith('backbone.') for key in moved)


def test_missing_weights_are_explained():
    cfg = Config.fromfile(ROOT / 'configs/fcos/fcos_tresnet-m_fpn_asl_8xb6-70e_coco.py')
    model = MODELS.build(cfg.model)
    with pytest.raises(FileNotFoundError) as error:
        model.init_weights()
    message = str(error.value)
    assert 'checkpoints/tresnet_m.pth' in message and 'init_cfg=None' in message
