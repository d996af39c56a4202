"""What README and docs/existing_projects.md tell users of mmdet, of mmpretrain and of other scopes to write."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData

from asl_mmdet import AsymmetricLoss
from asl_mmdet.datasets import AnnotationError, CocoMultiLabelDataset, CSVMultiLabelDataset
from tests.conftest import ROOT
from tests.test_models.test_asymmetric_loss import reference

BASES = [
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'mmdet::atss/atss_r50_fpn_1x_coco.py',
]
# A config as mmpretrain writes it, base files merged.
MMPRETRAIN = """
data_preprocessor = dict(
    num_classes=20, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True, to_onehot=True)
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, num_stages=4, out_indices=(3, ), style='pytorch'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='MultiLabelLinearClsHead',
        num_classes=20,
        in_channels=512,
        loss=dict(type='CrossEntropyLoss', use_sigmoid=True)))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=448, crop_ratio_range=(0.7, 1.0)),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs')]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=448),
    dict(type='PackInputs', meta_keys=('sample_idx', 'img_path', 'ori_shape', 'img_shape', 'gt_label_difficult'))]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    dataset=dict(type='VOC', data_root='VOC2007', split='trainval', pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    batch_size=2,
    num_workers=0,
    dataset=dict(type='VOC', data_root='VOC2007', split='test', pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='VOCMultiLabelMetric'),
    dict(type='VOCMultiLabelMetric', average='micro'),
    dict(type='VOCAveragePrecision')]
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0005))
param_scheduler = dict(type='StepLR', by_epoch=True, step_size=6, gamma=0.1)
train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
val_cfg = dict()
test_cfg = dict()
default_scope = 'mmpretrain'
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=1),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='VisualizationHook', enable=False))
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork'), dist_cfg=dict(backend='nccl'))
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='UniversalVisualizer', vis_backends=vis_backends)
log_level = 'INFO'
load_from = None
resume = False
"""


def snippets(page: str) -> list[str]:
    """The Python blocks of a page that bring the loss in."""
    blocks = re.findall(r'^```python\n(.*?)^```', (ROOT / page).read_text(encoding='utf-8'), re.MULTILINE | re.DOTALL)
    return [block for block in blocks if "imports=['asl_mmdet']" in block]


def without_base(snippet: str) -> str:
    return re.sub(r'^_base_ = .*\n', '', snippet, flags=re.MULTILINE)


DETECTION, BY_PREFIX, CONVERTED = snippets('docs/existing_projects.md')


def config(folder, base: str, snippet: str) -> Config:
    path = folder / 'config.py'
    path.write_text(f'_base_ = {base!r}\n{without_base(snippet)}')
    return Config.fromfile(path)


@pytest.fixture
def default_scope():
    """The scope that a test sets is gone afterwards."""
    before = DefaultScope.get_current_instance()
    yield
    DefaultScope._instance_dict.clear()
    if before is not None:
        DefaultScope.get_instance(before.instance_name, scope_name=before.scope_name)


@pytest.fixture
def what_a_loss_was_given(monkeypatch):
    """(logits, labels, avg_factor, value) of every call of an AsymmetricLoss."""
    calls = []
    forward = AsymmetricLoss.forward

    def note(self, pred, target, *args, **kwargs):
        value = forward(self, pred, target, *args, **kwargs)
        calls.append((pred.detach().clone(), target.clone(), args, kwargs, value.item()))
        return value

    monkeypatch.setattr(AsymmetricLoss, 'forward', note)
    return calls


def test_the_change_is_three_lines_and_readme_shows_the_same():
    code = [line for line in without_base(DETECTION).splitlines() if line and not line.startswith('#')]
    assert len(code) == 3
    loss = dict(_delete_=True, type='AsymmetricLoss', use_sigmoid=True, gamma_pos=1.0, gamma_neg=2.0, clip=0.0)
    shown = [snippet for snippet in snippets('README.md') if 'bbox_head' in snippet]
    assert shown
    for snippet in (DETECTION, *shown):
        change = Config.fromstring(without_base(snippet), '.py')
        assert change.custom_imports == dict(imports=['asl_mmdet'], allow_failed_imports=False)
        assert change.model.to_dict() == dict(bbox_head=dict(loss_cls=loss))
    assert BY_PREFIX in snippets('README.md')


@pytest.mark.parametrize('base', BASES)
def test_three_lines_over_a_config_of_mmdet(base, tmp_path, what_a_loss_was_given):
    cfg = config(tmp_path, base, DETECTION)
    assert get_config(base).model.bbox_head.loss_cls.type == 'FocalLoss'
    cfg.model.backbone.update(depth=18, init_cfg=None)
    cfg.model.neck.update(in_channels=[64, 128, 256, 512], out_channels=32)
    cfg.model.bbox_head.update(in_channels=32, feat_channels=32)
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    assert type(model.bbox_head.loss_cls) is AsymmetricLoss
    model.init_weights()

    objects = InstanceData(
        bboxes=torch.tensor([[10.0, 12.0, 60.0, 58.0], [30.0, 5.0, 90.0, 40.0]]), labels=torch.tensor([3, 41])
    )
    samples = [DetDataSample(metainfo=dict(img_shape=(96, 96), ori_shape=(96, 96), scale_factor=1.0)) for _ in range(2)]
    for sample in samples:
        sample.gt_instances = objects
    batch = dict(inputs=[torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8) for _ in samples], data_samples=samples)
    before = {name: value.clone() for name, value in model.named_parameters() if value.requires_grad}
    logged = model.train_step(batch, OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01)))

    expected, positives = 0.0, 0
    for logits, target, args, kwargs, value in what_a_loss_was_given:
        labels = torch.nn.functional.one_hot(target, 81)[:, :80]  # 80 is background
        elements = reference(logits, labels, gamma_pos=1.0, gamma_neg=2.0, clip=0.0)
        weight = args[0].reshape(len(target), -1) if args else torch.ones(len(target), 1)
        positives += int((labels * weight).sum())
        one = ((elements * weight).sum() / kwargs['avg_factor']).item()
        assert value == pytest.approx(one, rel=1e-5)
        expected += one
    assert positives > 0
    assert logged['loss_cls'].item() == pytest.approx(expected, rel=1e-5)
    # Nearly all are negatives of p = 0.01, whose loss is about p^2 * p.
    assert 0 < logged['loss_cls'] < logged['loss']
    moved = {name for name, value in model.named_parameters() if name in before and not value.equal(before[name])}
    assert {name.partition('.')[0] for name in moved} == {'backbone', 'neck', 'bbox_head'}


def write_voc(root):
    """Four pictures in VOC's layout, two a split: a dog, and a dog and a chair."""
    for folder in ('ImageSets/Main', 'Annotations', 'JPEGImages'):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, ids in (('trainval', ['000005', '000007']), ('test', ['000001', '000002'])):
        (root / f'ImageSets/Main/{split}.txt').write_text('\n'.join(ids))
        for i, names in zip(ids, (['dog'], ['dog', 'chair'])):
            cv2.imwrite(str(root / f'JPEGImages/{i}.jpg'), rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))
            things = ''.join(f'<object><name>{name}</name><difficult>0</difficult></object>' for name in names)
            (root / f'Annotations/{i}.xml').write_text(f'<annotation>{things}</annotation>')


def test_a_multi_label_config_of_mmpretrain_becomes_ours(tmp_path, monkeypatch, what_a_loss_was_given, default_scope):
    monkeypatch.chdir(tmp_path)
    write_voc(tmp_path / 'VOC2007')
    (tmp_path / 'my_voc07.py').write_text(MMPRETRAIN)
    cfg = config(tmp_path, 'my_voc07.py', CONVERTED.replace('(448, 448)', '(64, 64)'))
    cfg.work_dir = str(tmp_path / 'work')
    cfg.env_cfg.dist_cfg.backend = 'gloo'
    torch.manual_seed(0)
    runner = Runner.from_cfg(cfg)
    runner.train()
    model = runner.model
    assert [type(module).__module__.split('.')[0] for module in (model, model.head, model.backbone)] == [
        'asl_mmdet',
        'asl_mmdet',
        'mmdet',
    ]
    assert model.data_preprocessor.mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    ((logits, target, args, kwargs, value),) = what_a_loss_was_given
    dog, chair = (runner.train_dataloader.dataset.metainfo['classes'].index(name) for name in ('dog', 'chair'))
    assert sorted(target.sum(1).tolist()) == [1, 2] and target[:, dog].tolist() == [1, 1]
    assert target[:, chair].sum() == 1
    expected = reference(logits, target, gamma_pos=0.0, gamma_neg=4.0, clip=0.05).sum().item() / 2
    assert value == pytest.approx(expected, rel=1e-5)
    # p is about 0.5 everywhere at the start: 3 positives of ln 2, 37 negatives of 0.45^4 ln(1/0.55), for two images.
    assert value == pytest.approx((3 * 0.6931 + 37 * 0.45**4 * 0.5978) / 2, rel=0.3)
    scores = runner.val()
    assert scores.keys() >= {'multi-label/mAP', 'multi-label/CF1', 'multi-label/OF1'}


def test_an_annotation_file_of_mmpretrain_becomes_a_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = {'b.jpg': [1, 2], 'a.jpg': [], 'c.jpg': [0]}
    entries = [dict(img_path=name, gt_label=labels) for name, labels in images.items()]
    content = json.dumps(dict(metainfo=dict(classes=['tree', 'dog', 'sky']), data_list=entries))
    (tmp_path / 'train.json').write_text(content)
    page = (ROOT / 'docs/existing_projects.md').read_text(encoding='utf-8')
    (snippet,) = re.findall(r'^```python\n((?:(?!```).)*data_list.*?)^```', page, re.MULTILINE | re.DOTALL)
    exec(snippet, {})
    dataset = CSVMultiLabelDataset(
        'train.csv', label_form='indices', metainfo=dict(classes='classes.txt'), missing_images='unchecked'
    )
    assert dataset.metainfo['classes'] == ('tree', 'dog', 'sky')
    assert {info['img_id']: info['gt_label'].tolist() for info in map(dataset.get_data_info, range(3))} == images
    for kind in (CSVMultiLabelDataset, CocoMultiLabelDataset):
        with pytest.raises(AnnotationError, match=r'docs/existing_projects\.md turns'):
            kind('train.json')


OTHER_SCOPE = """
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS as ROOT_MODELS, DefaultScope, Registry
import sys
assert not any(name.startswith(('asl_mmdet.', 'mmdet')) for name in sys.modules if name != 'asl_mmdet_scope')

MODELS = Registry('model', parent=ROOT_MODELS, scope='mmpretrain')  # as mmpretrain's, which is not installed

@MODELS.register_module()
class Head(torch.nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.loss = MODELS.build(loss)

@MODELS.register_module()
class AsymmetricLoss:  # mmpretrain has one of its own
    pass

cfg = Config.fromfile(sys.argv[1])  # custom_imports is all that brings the plugin in
DefaultScope.get_instance('other', scope_name='mmpretrain')
head = MODELS.build(cfg.model.head)
assert type(head.loss).__module__ == 'asl_mmdet.models.asymmetric_loss', type(head.loss)
assert type(MODELS.build(dict(type='AsymmetricLoss'))) is AsymmetricLoss
value = head.loss(torch.zeros(2, 4), torch.tensor([[1., 0, 0, 0], [0, 0, 0, 0]]), avg_factor=2)
print('loss', value.item())
backbone = MODELS.build(dict(type='mmdet.TResNet', arch=dict(layers=(1, 1, 1, 1), width=0.25), out_indices=(3,)))
print('stage', tuple(backbone(torch.zeros(1, 3, 64, 64))[0].shape))
assert DefaultScope.get_current_instance().scope_name == 'mmpretrain'
"""


@pytest.mark.skipif(find_spec('mmpretrain') is None, reason='mmpretrain, with --no-deps')
def test_the_config_of_mmpretrain_that_is_named_exists():
    name = re.search(r"'mmpretrain::(.*)'", BY_PREFIX)[1]
    base = Path(find_spec('mmpretrain').origin).parent / '.mim/configs' / name
    assert Config.fromfile(base).model.head.loss.use_sigmoid


def test_loss_and_backbone_from_another_scope(tmp_path):
    (tmp_path / 'base.py').write_text("model = dict(head=dict(type='Head', loss=dict(type='X')))")
    (tmp_path / 'config.py').write_text(f"_base_ = 'base.py'\n{without_base(BY_PREFIX)}")
    done = subprocess.run(
        [sys.executable, '-c', OTHER_SCOPE, str(tmp_path / 'config.py')], text=True, capture_output=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    # ln 2 and seven times 0.45^4 ln(1/0.55), over two images.
    assert float(re.search(r'loss (\S+)', done.stdout)[1]) == pytest.approx(
        (0.693147 + 7 * 0.45**4 * 0.597837) / 2, rel=1e-5
    )
    assert re.search(r'stage \(1, 512, 2, 2\)', done.stdout), done.stdout
