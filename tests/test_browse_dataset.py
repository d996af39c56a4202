import importlib.util
import re
import sys

import cv2
import numpy as np
import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from asl_mmdet.structures import MultiLabelDataSample
from tests.conftest import ROOT, run_tool

CLASSIFIER = ROOT / 'configs/multi_label/tresnet-narrow_asl_shapes.py'
DETECTOR = ROOT / 'configs/fcos/fcos_tresnet-narrow_fpn_asl_shapes.py'
PIXELS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [10, 100, 200]]], dtype=np.uint8)  # RGB


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('browse_dataset', ROOT / 'tools/analysis_tools/browse_dataset.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def browse(tool, shapes, monkeypatch, capsys, new_loggers):
    def run(config, *args, options=()):
        splits = [f'{split}_dataloader.dataset.data_root={shapes}/' for split in ('train', 'val', 'test')]
        monkeypatch.setattr(sys, 'argv', ['browse', *map(str, (config, *args)), '--cfg-options', *splits, *options])
        status = 0
        try:
            tool.main()
        except SystemExit as error:
            status = error.code
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


@pytest.mark.parametrize(
    'pixels',
    [
        dict(mean=[0, 0, 0], std=[255, 255, 255], bgr_to_rgb=True),
        dict(mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4], bgr_to_rgb=True),
        dict(mean=[103.5, 116.3, 123.7], std=[1, 1, 1], bgr_to_rgb=False),  # Caffe's
        dict(mean=[103.5, 116.3, 123.7], std=[57.4, 57.1, 58.4], rgb_to_bgr=False),
        dict(),
    ],
)
def test_preprocessing_is_undone(tool, pixels):
    loaded = torch.from_numpy(PIXELS[..., ::-1].transpose(2, 0, 1).copy())  # blue, green, red, as mmcv loads
    preprocessor = DetDataPreprocessor(**pixels)
    data = preprocessor(dict(inputs=[loaded], data_samples=None), False)
    shown, stretched = tool.displayed(data['inputs'][0], preprocessor)
    assert np.array_equal(shown, PIXELS) and not stretched


def test_what_the_pipeline_has_normalized_is_stretched(tool):
    grey = torch.tensor([[[-2.0, 3.0]]])
    shown, stretched = tool.displayed(grey, DetDataPreprocessor())
    assert stretched and shown.shape == (1, 2, 3) and shown[0, :, 0].tolist() == [0, 255]


def test_labels_and_boxes_in_words(tool):
    sample = MultiLabelDataSample(gt_label=torch.tensor([1]), gt_unknown=torch.tensor([0, 2]))
    assert tool.labels_in_words(sample, ('cat', 'dog')) == 'dog, unknown: cat, unknown: class 2'
    boxes = DetDataSample(gt_instances=InstanceData(labels=torch.tensor([1, 1, 0])))
    boxes.ignored_instances = InstanceData(labels=torch.tensor([1]))
    assert tool.labels_in_words(boxes, ('cat', 'dog')) == 'cat 1, dog 2, 1 ignored'
    assert tool.labels_in_words(DetDataSample(), ('cat', 'dog')) == 'no labels'


def test_boxes_are_drawn_where_the_objects_are(tool):
    sample = DetDataSample(
        gt_instances=InstanceData(labels=torch.tensor([0]), bboxes=torch.tensor([[5.0, 10, 25, 30]]))
    )
    sample.ignored_instances = InstanceData(labels=torch.tensor([0]), bboxes=torch.tensor([[32.0, 4, 44, 44]]))
    meta = dict(classes=('cat',), palette=[(255, 0, 0)])
    picture = tool.draw_boxes({}, meta, np.zeros((48, 48, 3), dtype=np.uint8), sample)
    assert picture.shape == (480, 480, 3)  # ten times as large
    red = (picture[..., 0] > 100) & (picture[..., 1:].max(2) < 50)
    rows, columns = np.nonzero(red)
    assert [columns.min(), columns.max(), rows.min(), rows.max()] == pytest.approx([50, 250, 100, 300], abs=4)
    white = picture.min(2) > 150
    assert white[60:420, 316:325].any() and not white[60:420, 340:420].any()


def test_a_training_set_is_drawn(browse, shapes, tmp_path):
    status, output = browse(
        CLASSIFIER, '--out', tmp_path, '-n', 3, options=['train_dataloader.dataset.pipeline.1.prob=0.0']
    )
    assert status == 0, output
    # Evenly spread over the 16.
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        '000000_000001.png',
        '000008_000009.png',
        '000015_000016.png',
        'sheet_1.png',
    ]
    assert '3 pictures of 16 images of train and 1 sheets' in output
    drawn = cv2.imread(str(tmp_path / '000008_000009.png'))
    given = cv2.resize(cv2.imread(str(shapes / 'train/000009.png')), (480, 480), interpolation=cv2.INTER_LINEAR)
    # Labels are written in the left upper corner.
    assert np.abs(drawn[240:].astype(int) - given[240:]).mean() < 1
    sheet = cv2.imread(str(tmp_path / 'sheet_1.png'))
    assert sheet.shape[1] == 900 and sheet.std() > 20


@pytest.mark.parametrize('number', [1, 2, 4, 8])
def test_captions_of_three_lines_fit_on_a_sheet(tool, number):
    caption = '000001.png\n128 x 128\ncircle, square'
    sheet = tool.contact_sheet([(caption, np.full((128, 128, 3), 255, dtype=np.uint8))] * number, 4)
    rows = np.flatnonzero((sheet < 128).any((1, 2)))
    assert rows[0] > 1


def test_augmentations_of_one_picture_differ_and_come_back_with_the_seed(browse, tmp_path):
    options = ('--index', 4, '--repeat', 6)
    for folder, seed in (('one', 0), ('again', 0), ('other', 1)):
        status, output = browse(DETECTOR, *options, '--seed', seed, '--out', tmp_path / folder)
        assert status == 0, output
    one, again, other = (
        [path.read_bytes() for path in sorted((tmp_path / folder).glob('0*.png'))]
        for folder in ('one', 'again', 'other')
    )
    assert len(one) == 6 and len(set(one)) > 1
    assert one == again and one != other
    assert len(re.findall(r'^000004_\d_000005  128 x 128  ', output, re.M)) == 6


def test_wrong_calls_say_what_is_wrong(browse, tmp_path):
    status, output = browse(CLASSIFIER, '--index', 16, '--out', tmp_path / 'out')
    assert 'the train data set has 16 images, counted from 0' in status and not (tmp_path / 'out').exists()
    status, output = browse(tmp_path / 'none.py')
    assert status == f'no config file {tmp_path}/none.py'
    status, output = browse(CLASSIFIER, '-n', 0)
    assert status == 2 and '0 is below 1' in output
    options = ('--split', 'val', '--cfg-options', 'val_dataloader.dataset.ann_file=x.json')
    done = run_tool('tools/analysis_tools/browse_dataset.py', CLASSIFIER, *options)
    assert done.returncode == 1 and 'x.json does not exist' in done.stdout.splitlines()[-1]
