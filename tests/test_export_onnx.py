"""tools/export_onnx.py and tools/onnx_predict.py: files in onnxruntime beside mmdet's own predictions."""

import json
import re
import runpy
import shutil
import subprocess
import sys

import cv2
import mmdet.models  # noqa: F401  (registers the detectors)
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from tests.conftest import ROOT

onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')
from asl_mmdet.onnx_export import DetectionGraph, export_onnx, kept_by_nms, preprocessing  # noqa: E402

CONFIGS = dict(
    classifier='multi_label/tresnet-narrow_asl_shapes-64.py',
    fcos='fcos/fcos_tresnet-narrow_fpn_asl_shapes.py',
    atss='atss/atss_tresnet-narrow_fpn_asl_shapes.py',
)
CLASSES = ('circle', 'ring', 'square', 'triangle', 'star', 'cross')


@pytest.fixture(autouse=True)
def mmdet_scope():
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def config_of(name, **options):
    cfg = Config.fromfile(name if str(name).startswith('/') else ROOT / 'configs' / name)
    cfg.merge_from_dict({'model.backbone.init_cfg': None, **options})
    return cfg


def built(cfg):
    """Norms have seen data; a detector finds things of all classes that overlap, above and below its threshold."""
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1)
            nn.init.normal_(norm.bias, 0, 0.1)
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    head = model.bbox_head if hasattr(model, 'bbox_head') else model.head
    for name, layer in head.named_children():
        if name in ('conv_cls', 'atss_cls'):
            nn.init.normal_(layer.weight, 0, 0.1)
            nn.init.constant_(layer.bias, -3)
        elif name in ('conv_reg', 'atss_reg', 'retina_reg'):
            nn.init.normal_(layer.weight, 0, 0.05)
            nn.init.constant_(layer.bias, 2 if name == 'conv_reg' else 0)
    number = head.num_classes
    model.dataset_meta = dict(classes=CLASSES if number == 6 else tuple(f'class {i}' for i in range(number)))
    return model


def save(model, path):
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=model.dataset_meta)), path)
    return path


def session_of(cfg, model, path):
    export_onnx(cfg, model, path)
    return onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])


def drawn(height, width, seed):
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC)


def assert_same_objects(model, session, sizes):
    """A batch of pictures of these sizes, padded together as mmdet pads it; how many objects there are in each."""
    data = dict(
        inputs=[torch.from_numpy(drawn(*size, seed=i)).permute(2, 0, 1) for i, size in enumerate(sizes)],
        data_samples=[
            DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))) for size in sizes
        ],
    )
    with torch.no_grad():
        data = model.data_preprocessor(data)
        expected = [sample.pred_instances for sample in model(**data, mode='predict')]
    boxes, scores, labels = session.run(None, dict(image=data['inputs'].numpy(), image_size=np.array(sizes)))
    most = model.test_cfg.max_per_img
    assert boxes.shape == (len(sizes), most, 4) and scores.shape == labels.shape == (len(sizes), most)
    for one, box, score, label in zip(expected, boxes, scores, labels):
        number = len(one.scores)
        assert (label[number:] == -1).all() and (score[number:] == 0).all() and (box[number:] == 0).all()
        torch.testing.assert_close(torch.from_numpy(score[:number]), one.scores, rtol=0, atol=1e-4)
        # Equal labels and boxes, in an order in which nearly equal scores may have changed places.
        found, wanted = (
            sorted(zip(of[0].tolist(), of[1].tolist()), key=lambda pair: (pair[0], [round(x) for x in pair[1]]))
            for of in ((label[:number], box[:number]), (one.labels, one.bboxes))
        )
        assert [pair[0] for pair in found] == [pair[0] for pair in wanted]
        np.testing.assert_allclose([pair[1] for pair in found], [pair[1] for pair in wanted], atol=0.05)
    return [len(one.scores) for one in expected]


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['fcos', 'atss'])
def test_detectors_at_any_batch_and_size(kind, tmp_path):
    cfg = config_of(CONFIGS[kind])
    model = built(cfg)
    session = session_of(cfg, model, tmp_path / 'model.onnx')
    assert [(entry.name, entry.shape) for entry in session.get_inputs()] == [
        ('image', ['batch', 3, 'height', 'width']),
        ('image_size', ['batch', 2]),
    ]
    assert [(entry.name, entry.shape) for entry in session.get_outputs()] == [
        ('boxes', ['batch', 100, 4]),
        ('scores', ['batch', 100]),
        ('labels', ['batch', 100]),
    ]
    # Of the second picture, as large as a single place of the last map, fewer objects are found than there is room for.
    numbers = assert_same_objects(model, session, [(128, 100), (57, 128), (128, 128)])
    numbers += assert_same_objects(model, session, [(32, 32)])
    assert max(numbers) == 100 and 1 < numbers[-1] < 100
    # The model is as it was.
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_nms_suppresses_within_a_class_alone():
    """Hand-made: the second box overlaps the first by 9 x 10 of 11 x 10, the third lies apart, the fourth is none."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 0, 11, 10], [30, 0, 40, 10], [60, 0, 70, 10]]])
    scores = torch.tensor([[0.8, 0.9, 0.5, 0.0]])
    assert kept_by_nms(boxes, scores, 0.8, 9).tolist() == [[False, True, True, False]]
    assert kept_by_nms(boxes, scores, 0.9, 9).tolist() == [[True, True, True, False]]
    assert kept_by_nms(boxes, scores, 0.8, 1).tolist() == [[False, True, False, False]]


def test_classifier_at_any_batch_and_size(tmp_path):
    cfg = config_of(CONFIGS['classifier'])
    model = built(cfg)
    session = session_of(cfg, model, tmp_path / 'model.onnx')
    assert session.get_outputs()[0].shape == ['batch', model.head.num_classes]
    for shape in ((3, 3, 64, 64), (1, 3, 96, 128)):
        images = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = torch.stack([sample.pred_score for sample in model(images, mode='predict')])
        torch.testing.assert_close(torch.from_numpy(session.run(None, dict(image=images.numpy()))[0]), expected)


# ------------------------------------------------------------------------------------------------------------ metadata


ALL = ('multi_label/*.py', 'single_label/*.py', 'fcos/*.py', 'atss/*.py')


@pytest.mark.parametrize(
    'pattern', ['*/*_shapes.py', *(pytest.param(pattern, marks=pytest.mark.slow) for pattern in ALL)]
)
def test_every_config_has_preprocessing_that_can_be_written(pattern):
    for path in sorted((ROOT / 'configs').glob(pattern)):
        cfg = Config.fromfile(path)
        steps = preprocessing(cfg.test_dataloader.dataset.pipeline, MODELS.build(cfg.model.data_preprocessor))
        assert steps['channels'] == 'RGB' and steps['mean'] == [0] * 3 and steps['std'] == [255] * 3, path
        assert json.loads(json.dumps(steps)) == steps
        if path.name.endswith('_coco.py'):
            assert steps['resize'] == dict(width=1333, height=800, keep_ratio=True) and steps['pad_divisor'] == 32


LOAD, PACK = dict(type='LoadImageFromFile'), dict(type='PackDetInputs')


@pytest.mark.parametrize(
    ('pipeline', 'pixels', 'named'),
    [
        ([LOAD, dict(type='Pad', size_divisor=32), PACK], {}, "'type': 'Pad'"),
        ([LOAD, dict(type='Resize', scale_factor=0.5), PACK], {}, 'scale_factor'),
        ([LOAD, dict(type='Resize', scale=(8, 8), interpolation='bicubic'), PACK], {}, 'bicubic'),
        ([LOAD, *2 * [dict(type='Resize', scale=(8, 8))], PACK], {}, 'at most one Resize'),
        ([dict(LOAD, color_type='grayscale'), PACK], {}, 'grayscale'),
        ([LOAD, PACK], dict(type='mmdet.BatchFixedSizePad', size=(8, 8)), 'model.data_preprocessor.type'),
    ],
)
def test_other_preprocessing_is_refused(pipeline, pixels, named):
    with pytest.raises(ValueError, match=named) as error:
        preprocessing(pipeline, MODELS.build({'type': 'DetDataPreprocessor', **pixels}))
    assert '\n' not in str(error.value)


def test_preprocessing_without_normalisation():
    steps = preprocessing([LOAD, PACK], MODELS.build(dict(type='DetDataPreprocessor', pad_size_divisor=4, pad_value=7)))
    assert steps == dict(resize=None, channels='BGR', mean=[0] * 3, std=[1] * 3, pad_divisor=4, pad_value=7)


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        ({'model.test_cfg.nms': dict(_delete_=True, type='soft_nms', iou_threshold=0.5)}, 'soft_nms'),
        ({'model.test_cfg.nms.class_agnostic': True}, 'class_agnostic'),
        ({'model.test_cfg.nms_pre': -1}, "'nms_pre': -1"),
        ({'model.test_cfg.min_bbox_size': 4}, 'min_bbox_size'),
        ({'model.bbox_head.loss_cls.use_sigmoid': False}, 'use_sigmoid=False'),
    ],
)
def test_other_test_settings_are_refused(options, named):
    with pytest.raises(ValueError, match=named) as error:
        DetectionGraph(MODELS.build(config_of(CONFIGS['atss'], **options).model))
    assert '\n' not in str(error.value)


def test_a_head_with_a_prediction_of_its_own_is_refused():
    model = built(config_of(CONFIGS['atss']))
    model.bbox_head.__class__ = type('OwnHead', (type(model.bbox_head),), dict(predict_by_feat=lambda self: None))
    with pytest.raises(ValueError, match='OwnHead predicts in a way of its own'):
        DetectionGraph(model)


# --------------------------------------------------------------------------------------------------------------- tools


@pytest.fixture
def tool(monkeypatch, capsys):
    """Run a tool in this process; returns its exit status and what it printed."""

    def run(name, *args):
        monkeypatch.setattr('sys.argv', [name, *map(str, args)])
        monkeypatch.syspath_prepend(str(ROOT / 'tools'))
        status = 0
        try:
            runpy.run_path(str(ROOT / 'tools' / name), run_name='__main__')
        except SystemExit as end:
            status = end.code
        return status, ''.join(capsys.readouterr())

    return run


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """Of other shapes than the network's, lying and standing."""
    folder = tmp_path_factory.mktemp('pictures')
    for i, (height, width) in enumerate([(150, 100), (61, 200)]):
        cv2.imwrite(str(folder / f'{i}.png'), drawn(height, width, i))
    return folder


def found_without_torch(model, picture):
    """What onnx_predict.py prints where nothing of torch and OpenMMLab can be imported."""
    code = (
        'import runpy, sys\n'
        'for name in ("torch", "mmcv", "mmdet", "mmengine", "asl_mmdet"): sys.modules[name] = None\n'
        'runpy.run_path(sys.argv[0], run_name="__main__")\n'
    )
    argv = [str(ROOT / 'tools/onnx_predict.py'), str(model), str(picture)]
    done = subprocess.run(
        [sys.executable, '-c', f'import sys; sys.argv = {argv!r}\n{code}'], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ('kind', 'score_thr'),
    [('classifier', 0.5), pytest.param('fcos', 0.2, marks=pytest.mark.slow), ('atss', 0.2)],
)
def test_a_file_alone_finds_what_infer_finds(kind, score_thr, tool, pictures, tmp_path):
    cfg = config_of(CONFIGS[kind])
    if kind == 'classifier':  # its shapes need no resizing
        cfg.test_dataloader.dataset.pipeline.insert(1, dict(type='Resize', scale=(96, 64)))
    cfg.dump(tmp_path / 'config.py')
    common = (tmp_path / 'config.py', save(built(cfg), tmp_path / 'checkpoint.pth'), '--score-thr', score_thr)
    status, printed = tool('export_onnx.py', *common, '--out', tmp_path / 'new/model.onnx', '--check', pictures)
    assert status == 0 and re.search(r'2 pictures, \d+ labels, 0 found by one of the two alone; boxes', printed), (
        printed
    )
    if kind == 'classifier':
        strict = ('--score-thr', 1, '--out', tmp_path / 'strict.onnx', '--check', pictures)
        status, printed = tool('export_onnx.py', *common[:2], *strict)
        assert status == 0 and '2 pictures, 0 labels' in printed
        assert 'nothing was compared: no score reached 1.0 in any picture. Lower it with --score-thr' in printed
    status, printed = tool('infer.py', pictures, *common, '--out', tmp_path / 'out.json', '--device', 'cpu')
    assert status == 0, printed
    for result in json.loads((tmp_path / 'out.json').read_text()):
        lines = [line.split(' ') for line in found_without_torch(tmp_path / 'new/model.onnx', result['image'])]
        expected = result.get('labels', result.get('objects'))
        assert len(lines) > 1 and sorted(line[0] for line in lines) == sorted(one['label'] for one in expected)
        for line, one in zip(lines, expected):
            assert float(line[1]) == pytest.approx(one['score'], abs=1e-4)
            assert [float(x) for x in line[2:]] == pytest.approx(one.get('box', []), abs=0.05)


def test_metadata_say_how_to_use_the_file(tool, tmp_path):
    cfg = ROOT / 'configs' / CONFIGS['classifier']
    save(built(config_of(CONFIGS['classifier'])), tmp_path / 'checkpoint.pth')
    options = ('--cfg-options', 'model.head.thr=None', 'model.head.topk=2')
    status, printed = tool('export_onnx.py', cfg, tmp_path / 'checkpoint.pth', '--out', tmp_path / 'a.onnx', *options)
    assert status == 0, printed
    session = onnxruntime.InferenceSession(tmp_path / 'a.onnx', providers=['CPUExecutionProvider'])
    about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert about == dict(
        task='classification',
        classes=list(CLASSES),
        preprocessing=dict(resize=None, channels='RGB', mean=[0] * 3, std=[255] * 3, pad_divisor=1, pad_value=0),
        score_thr=None,
        topk=2,
    )
    cv2.imwrite(str(tmp_path / 'a.png'), drawn(64, 64, 0))
    assert len(found_without_torch(tmp_path / 'a.onnx', tmp_path / 'a.png')) == 2


@pytest.mark.slow
def test_a_file_that_differs_is_told(tool, pictures, tmp_path, monkeypatch):
    """Export boxes that lie a pixel off."""
    graph = DetectionGraph.forward

    def moved(self, image, image_size):
        boxes, scores, labels = graph(self, image, image_size)
        return boxes + 1, scores, labels

    monkeypatch.setattr(DetectionGraph, 'forward', moved)
    cfg = ROOT / 'configs' / CONFIGS['fcos']
    save(built(config_of(CONFIGS['fcos'])), tmp_path / 'checkpoint.pth')
    folder = shutil.copytree(pictures, tmp_path / 'pictures')
    (folder / 'broken.jpg').write_text('no picture')
    cv2.imwrite(str(folder / 'narrow.png'), np.zeros((900, 3, 3), dtype=np.uint8))  # scaled to a width of 0
    common = (cfg, tmp_path / 'checkpoint.pth', '--out', tmp_path / 'a.onnx', '--check', folder)
    status, printed = tool('export_onnx.py', *common)
    assert status == 1 and 'boxes differ by at most 1' in printed, printed
    assert 'narrow.png cannot be prepared: ' in printed
    assert 'broken.jpg cannot be read' in printed and '2 pictures, ' in printed, printed


def test_tool_names_what_is_wrong(tool, tmp_path):
    cfg = ROOT / 'configs' / CONFIGS['fcos']
    model = built(config_of(CONFIGS['fcos']))
    good = save(model, tmp_path / 'checkpoint.pth')
    del model.bbox_head
    bad = save(model, tmp_path / 'headless.pth')
    out = ('--out', tmp_path / 'a.onnx')
    for wrong, message in (
        ((cfg, tmp_path / 'none.pth', *out), 'there is no file'),
        ((cfg, bad, *out), 'does not fit the model of the config'),
        ((cfg, good, *out, '--check', tmp_path / 'none'), 'there is no image or folder'),
        ((cfg, good, *out, '--cfg-options', 'model.test_cfg.nms.type=soft_nms'), 'soft_nms'),
        ((cfg, good, *out, '--cfg-options', 'model.data_preprocessor.type=Own'), 'Own'),
    ):
        status, printed = tool('export_onnx.py', *wrong)
        assert status != 0 and message in printed, printed
        assert not (tmp_path / 'a.onnx').exists()


# ----------------------------------------------------------------------------------------------------------- full size


@pytest.mark.slow
@pytest.mark.parametrize(
    'base',
    [
        'fcos/fcos_tresnet-m_fpn_asl_8xb6-70e_coco.py',
        'atss/atss_tresnet-m_fpn_asl_8xb6-70e_coco.py',
        'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
        'mmdet::atss/atss_r50_fpn_1x_coco.py',
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    ],
)
def test_detectors_of_full_size(base, tmp_path):
    """Those of this repository, and mmdet's own with the two changes of the README."""
    if base.startswith('mmdet::'):
        (tmp_path / 'config.py').write_text(
            f"_base_ = '{base}'\n"
            "custom_imports = dict(imports=['asl_mmdet'], allow_failed_imports=False)\n"
            "loss = dict(_delete_=True, type='AsymmetricLoss', use_sigmoid=True, gamma_pos=1, gamma_neg=2, clip=0)\n"
            'model = dict(bbox_head=dict(loss_cls=loss))\n'
        )
        base = str(tmp_path / 'config.py')
    cfg = config_of(base)
    model = built(cfg)
    session = session_of(cfg, model, tmp_path / 'model.onnx')
    numbers = assert_same_objects(model, session, [(320, 416), (300, 448)])
    assert min(numbers) > 10


@pytest.mark.slow
@pytest.mark.parametrize('name', ['tresnet-l_asl', 'tresnet-v2-l_asl', 'ofa595_asl', 'resnet101_asl'])
def test_classifiers_of_full_size(name, tmp_path):
    cfg = config_of(f'multi_label/{name}_8xb16-60e_coco2014-448.py')
    model = built(cfg)
    session = session_of(cfg, model, tmp_path / 'model.onnx')
    images = torch.rand(2, 3, 224, 288, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = torch.stack([sample.pred_score for sample in model(images, mode='predict')])
    found = torch.from_numpy(session.run(None, dict(image=images.numpy()))[0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_the_example_of_the_documentation_is_the_tool():
    page = (ROOT / 'docs/deployment.md').read_text()
    code = (ROOT / 'tools/onnx_predict.py').read_text()
    assert f'```python\n# predict.py\n{code}```' in page
    assert len([line for line in code.splitlines() if line]) <= 31
