import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModule
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from asl_mmdet.models import image_classifier, multi_label_head, ofa595  # noqa: F401, they register their classes
from asl_mmdet.structures import MultiLabelDataSample
from tests.conftest import ROOT

NUM_CLASSES = 3


class Means(BaseModule):
    """Backbone of two stages: the image, and a convolution of it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return x, self.norm(self.conv(x))


class Colours(Dataset):
    """Class 0, 1 or 2 is present where the image is blue, green or red: planes of uint8 in OpenCV's order."""

    metainfo = dict(classes=('blue', 'green', 'red'))

    def __len__(self):
        return 48

    def __getitem__(self, i):
        present = [c for c in range(NUM_CLASSES) if (i + 1) >> c & 1]
        image = torch.full((3, 8, 8), 30, dtype=torch.uint8)
        image[present] = 220
        metainfo = dict(img_path=f'{i}.png', num_classes=NUM_CLASSES)
        label = torch.tensor(present, dtype=torch.int64)
        return dict(inputs=image, data_samples=MultiLabelDataSample(metainfo=metainfo, gt_label=label))


class Separated(BaseMetric):
    """Share of images whose present classes all score higher than the absent ones."""

    default_prefix = 'colours'

    def process(self, data_batch, data_samples):
        for sample in data_samples:
            present = torch.zeros(NUM_CLASSES, dtype=torch.bool).index_fill(0, sample['gt_label'], True)
            if present.any() and not present.all():
                self.results.append(bool(sample['pred_score'][present].min() > sample['pred_score'][~present].max()))

    def compute_metrics(self, results):
        return dict(separated=sum(results) / len(results))


def classifier(**kwargs):
    cfg = dict(
        type='ImageClassifier',
        backbone=dict(type=Means),
        head=dict(
            type='MultiLabelLinearClsHead', num_classes=NUM_CLASSES, in_channels=8, loss=dict(type='AsymmetricLoss')
        ),
    )
    return MODELS.build({**cfg, **kwargs})


def batch(*indices):
    items = [Colours()[i] for i in indices]
    return dict(inputs=[item['inputs'] for item in items], data_samples=[item['data_samples'] for item in items])


# ---------------------------------------------------------------------------------------------------------------- modes


def test_tensor_mode_returns_logits():
    model = classifier().eval()
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(model(x), model.head.fc(model.backbone(x)[1].mean((2, 3))))


def test_loss_mode_is_what_train_step_minimises():
    model = classifier()
    data = model.data_preprocessor(batch(0, 1, 2), True)
    losses = model(**data, mode='loss')
    assert list(losses) == ['loss']
    expected = model.head.loss(model.backbone(data['inputs']), data['data_samples'])
    torch.testing.assert_close(losses['loss'], expected['loss'])
    logged = model.train_step(batch(0, 1, 2), OptimWrapper(torch.optim.SGD(model.parameters(), 0.1)))
    torch.testing.assert_close(logged['loss'], losses['loss'])


def test_predict_mode_fills_the_samples():
    model = classifier().eval()
    samples = model.test_step(batch(4, 6))
    assert [s.img_path for s in samples] == ['4.png', '6.png']
    logits = model(model.data_preprocessor(batch(4, 6))['inputs'])
    torch.testing.assert_close(torch.stack([s.pred_score for s in samples]), logits.sigmoid())
    assert model(torch.rand(2, 3, 8, 8), mode='predict')[1].pred_score.shape == (NUM_CLASSES,)


def test_unknown_mode_and_stage_are_named():
    with pytest.raises(RuntimeError, match="mode='test'"):
        classifier()(torch.rand(1, 3, 8, 8), mode='test')
    with pytest.raises(ValueError, match="stage='head'"):
        classifier().extract_feat(torch.rand(1, 3, 8, 8), stage='head')


def test_stages_of_features():
    model = classifier(neck=dict(type='GlobalAveragePooling')).eval()
    x = torch.rand(2, 3, 8, 8)
    assert [tuple(f.shape) for f in model.extract_feat(x, 'backbone')] == [(2, 3, 8, 8), (2, 8, 8, 8)]
    assert [tuple(f.shape) for f in model.extract_feat(x)] == [(2, 3), (2, 8)]
    assert tuple(model.extract_feat(x, 'pre_logits').shape) == (2, 8)


def test_with_and_without_neck_agree():
    plain = classifier().eval()
    pooled = classifier(neck=dict(type='GlobalAveragePooling')).eval()
    pooled.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(plain(x), pooled(x))


@pytest.mark.parametrize(
    'backbone, in_channels',
    [
        (dict(type='ResNet', depth=18, base_channels=4, out_indices=(3,)), 32),
        (dict(type='MobileNetV2', widen_factor=0.1, out_indices=(7,)), 1280),
    ],
)
def test_backbones_of_mmdet(backbone, in_channels):
    head = dict(type='MultiLabelLinearClsHead', num_classes=4, in_channels=in_channels)
    model = classifier(backbone=backbone, head=head)
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 4)


@pytest.mark.parametrize('name', ['tresnet-l_asl', 'resnet101_asl', 'ofa595_asl'])
def test_models_of_the_paper(name):
    model = Config.fromfile(ROOT / f'configs/multi_label/{name}_8xb16-60e_coco2014-448.py').model
    model.backbone.init_cfg = None
    model = MODELS.build(model).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 64, 64)).shape == (1, 80)
    asl = model.head.loss_module
    assert (asl.gamma_pos, asl.gamma_neg, asl.clip) == (0, 4, 0.05)


# --------------------------------------------------------------------------------------------------------------- pixels


def test_pixels_are_rgb_over_255():
    bgr = torch.stack([torch.full((2, 2), value, dtype=torch.uint8) for value in (0, 51, 255)])
    inputs = classifier().data_preprocessor(dict(inputs=[bgr], data_samples=None))['inputs']
    assert inputs[0, :, 0, 0].tolist() == pytest.approx([1.0, 0.2, 0.0])


def test_a_data_preprocessor_without_type_states_differences():
    model = classifier(data_preprocessor=dict(pad_size_divisor=32))
    inputs = model.data_preprocessor(batch(6))['inputs']
    assert inputs.shape == (1, 3, 32, 32) and inputs.max().item() == pytest.approx(220 / 255)
    model = classifier(data_preprocessor=dict(type='DetDataPreprocessor'))
    assert model.data_preprocessor(batch(6))['inputs'].max() == 220
    module = nn.Identity()
    assert classifier(data_preprocessor=module).data_preprocessor is module


def test_images_of_several_sizes_are_padded_to_one():
    data = batch(0, 1)
    data['inputs'][1] = data['inputs'][1][:, :4]
    out = classifier().data_preprocessor(data)
    assert out['inputs'].shape == (2, 3, 8, 8) and out['data_samples'][1].pad_shape == (4, 8)


# ------------------------------------------------------------------------------------------------------------- training


def runner_cfg(work_dir, **kwargs):
    loader = dict(batch_size=16, num_workers=0, dataset=Colours(), sampler=dict(type='DefaultSampler', shuffle=True))
    cfg = dict(
        default_scope='mmdet',
        work_dir=str(work_dir),
        experiment_name=work_dir.name,
        log_level='WARNING',
        model=dict(
            type='ImageClassifier',
            backbone=dict(type=Means),
            head=dict(
                type='MultiLabelLinearClsHead', num_classes=NUM_CLASSES, in_channels=8, loss=dict(type='AsymmetricLoss')
            ),
        ),
        train_dataloader=loader,
        val_dataloader=dict(loader, sampler=dict(type='DefaultSampler', shuffle=False)),
        train_cfg=dict(by_epoch=True, max_epochs=15, val_interval=15),
        val_cfg=dict(),
        val_evaluator=dict(type=Separated),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.05)),
        randomness=dict(seed=0),
    )
    return {**cfg, **kwargs}


def test_runner_trains_it_and_ema_follows(tmp_path):
    runner = Runner(**runner_cfg(tmp_path, custom_hooks=[dict(type='EMAHook', momentum=0.3, update_buffers=True)]))
    runner.train()
    assert runner.message_hub.get_scalar('val/colours/separated').current() == 1.0
    saved = torch.load(tmp_path / 'epoch_15.pth', weights_only=False)
    ema = saved['state_dict']
    raw = runner.model.state_dict()
    assert ema.keys() == raw.keys()
    assert not torch.equal(ema['head.fc.weight'], raw['head.fc.weight'])
    assert not torch.equal(ema['backbone.norm.running_mean'], raw['backbone.norm.running_mean'])


def test_runner_resumes_to_the_same_weights(tmp_path):
    def run(name, epochs, **kwargs):
        runner = Runner(
            **runner_cfg(tmp_path / name, train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=9), **kwargs)
        )
        runner.train()
        return runner.model.state_dict()

    straight = run('straight', 3)
    run('first', 2)
    resumed = run('second', 3, resume=True, load_from=str(tmp_path / 'first' / 'epoch_2.pth'))
    for name, value in straight.items():
        torch.testing.assert_close(resumed[name], value)


def test_compiled_steps_are_not_compiled_again_for_other_labels():
    model = classifier()
    expected = copy.deepcopy(model)
    step = torch.compile(model.train_step, backend='eager')
    optim_wrapper, plain = (OptimWrapper(torch.optim.SGD(m.parameters(), 0.1)) for m in (model, expected))
    data = [batch(0, 1, 2), batch(6, 5, 4), batch(7, 3, 47), batch(2, 2, 6)]
    for i, one in enumerate(data):
        # The second step already sees optimizer state and labels of other lengths than the first.
        with torch._dynamo.config.patch(error_on_recompile=i > 1):
            loss = step(one, optim_wrapper)['loss']
        torch.testing.assert_close(loss, expected.train_step(one, plain)['loss'])


def test_mixed_precision_follows_full_precision():
    model = classifier()
    data = model.data_preprocessor(batch(0, 3, 6), True)
    full = model(**data, mode='loss')['loss']
    with torch.autocast('cpu', torch.bfloat16):
        mixed = model(**data, mode='loss')['loss']
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, full, rtol=2e-2, atol=0)
    mixed.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_gradients_accumulate_to_those_of_the_whole_batch():
    whole = classifier().eval()  # BN of a batch is not BN of its halves
    halves = copy.deepcopy(whole)
    whole.train_step(batch(0, 1, 2, 3), OptimWrapper(torch.optim.SGD(whole.parameters(), 0.1)))
    optim_wrapper = OptimWrapper(torch.optim.SGD(halves.parameters(), 0.1), accumulative_counts=2)
    optim_wrapper.initialize_count_status(halves, 0, 2)
    for half in ((0, 1), (2, 3)):
        halves.train_step(batch(*half), optim_wrapper)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(halves.state_dict()[name], value)
