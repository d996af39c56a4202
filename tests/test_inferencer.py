import csv
import json
import re
import runpy
import shutil
import textwrap

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config

from asl_mmdet.fast_inference import fast_inference
from asl_mmdet.inferencer import MultiLabelInferencer, image_files
from tests.conftest import ROOT, run_tool

CLASSES = ('blue', 'green', 'red')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Config and checkpoint of a classifier that tells which of three colours are bright, and a folder of images."""
    folder = tmp_path_factory.mktemp('trained')
    config = folder / 'config.py'
    config.write_text(
        textwrap.dedent(f"""
        _base_ = '{ROOT}/configs/_base_/asl_mmdet.py'
        model = dict(
            type='ImageClassifier',
            backbone=dict(type='TResNet', arch=dict(layers=(1, 1, 1, 1), width=0.5), out_indices=(0, )),
            head=dict(type='MultiLabelLinearClsHead', num_classes=3, in_channels=32, thr=0.5))
        test_dataloader = dict(dataset=dict(pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(32, 32), keep_ratio=False),
            dict(type='PackMultiLabelInputs')]))
    """)
    )
    model = MODELS.build(Config.fromfile(config).model).eval()
    colours = {'a.png': [0], 'b.png': [0, 2], 'c.png': [], 'd.png': [1]}
    images = folder / 'images'
    images.mkdir()
    for name, bright in colours.items():
        image = np.full((40, 60, 3), 20, dtype=np.uint8)
        image[..., bright] = 230
        cv2.imwrite(str(images / name), image)
    # A linear fit of the random features to the colours.
    every = [[c for c in range(3) if i >> c & 1] for i in range(8)]
    pixels = torch.full((8, 3, 32, 32), 20 / 255)
    for i, bright in enumerate(every):
        pixels[i, [2 - c for c in bright]] = 230 / 255
    with torch.no_grad():
        features = torch.cat([model.extract_feat(pixels, 'pre_logits'), torch.ones(8, 1)], 1)
        target = torch.tensor([[4.0 if c in bright else -4.0 for c in range(3)] for bright in every])
        solution = torch.linalg.lstsq(features.double(), target.double(), driver='gelsd').solution.float()
        model.head.fc.weight.copy_(solution[:-1].T)
        model.head.fc.bias.copy_(solution[-1])
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(meta=meta, state_dict=model.state_dict()), folder / 'checkpoint.pth')
    return folder


@pytest.fixture(scope='module')
def inferencer(trained):
    return MultiLabelInferencer(trained / 'config.py', trained / 'checkpoint.pth', 'cpu', show_progress=False)


def names(predictions):
    return [{label['label'] for label in prediction['labels']} for prediction in predictions]


@pytest.mark.parametrize('batch_size', [1, 3, 10])
def test_a_folder_in_order(inferencer, trained, batch_size):
    found = inferencer(trained / 'images', batch_size=batch_size)
    assert [p['image'] for p in found['predictions']] == [str(trained / f'images/{n}.png') for n in 'abcd']
    assert names(found['predictions']) == [{'blue'}, {'blue', 'red'}, set(), {'green'}]
    assert found['skipped'] == [] and found['visualization'] == []
    label = found['predictions'][3]['labels'][0]
    assert label['index'] == 1 and 0.9 < label['score'] < 1
    assert json.loads(json.dumps(found['predictions'])) == found['predictions']


def test_files_arrays_and_single_images(inferencer, trained):
    file = trained / 'images/b.png'
    array = cv2.imread(str(file))
    by_file, by_array = inferencer([file, array])['predictions']
    assert by_file['labels'] == by_array['labels'] and by_array['image'] is None
    assert inferencer(str(file))['predictions'] == [by_file]
    assert inferencer(array)['predictions'] == [by_array]


def test_labels_stand_in_the_order_of_their_scores(inferencer, trained):
    prediction = inferencer(trained / 'images/b.png', all_scores=True)['predictions'][0]
    scores = [label['score'] for label in prediction['labels']]
    assert scores == sorted(scores, reverse=True) and len(scores) == 2
    assert list(prediction['scores']) == list(CLASSES)
    assert prediction['scores'][prediction['labels'][0]['label']] == scores[0]


def test_data_samples_on_request(inferencer, trained):
    sample = inferencer(trained / 'images/a.png', return_datasamples=True)['predictions'][0]
    assert sample.pred_label.tolist() == [0] and sample.pred_score.shape == (3,)


def test_unreadable_images_are_reported_and_left_out(inferencer, trained, tmp_path, caplog):
    good = trained / 'images/a.png'
    (tmp_path / 'text.jpg').write_text('no image')
    (tmp_path / 'empty.png').touch()
    jpeg = cv2.imencode('.jpg', cv2.imread(str(good)))[1].tobytes()
    (tmp_path / 'truncated.jpg').write_bytes(jpeg[: len(jpeg) // 2])
    bad = [tmp_path / name for name in ('text.jpg', 'empty.png', 'truncated.jpg', 'nothing.jpg')]
    for batch_size in (1, 2, 4):
        found = inferencer(
            [bad[0], good, *bad[1:], good], batch_size=batch_size, picture_dir=tmp_path / str(batch_size)
        )
        assert [p['image'] for p in found['predictions']] == [str(good)] * 2
        assert [item['image'] for item in found['skipped']] == [str(path) for path in bad]
        assert all(item['reason'] for item in found['skipped'])
        assert sorted(path.name for path in (tmp_path / str(batch_size)).iterdir()) == ['00000005_a.png', 'a.png']


@pytest.mark.parametrize('shape', [(32, 32), (32, 32, 1), (32, 32, 4), (3, 32, 32)])
def test_arrays_that_are_no_pictures_of_three_channels_are_left_out(inferencer, trained, shape):
    found = inferencer([np.zeros(shape, dtype=np.uint8), trained / 'images/a.png'], batch_size=2)
    assert [p['image'] for p in found['predictions']] == [str(trained / 'images/a.png')]
    assert found['skipped'] == [
        dict(image=None, reason=f'the array has the shape {shape}, but (H, W, 3) in BGR is wanted')
    ]


def test_an_image_that_the_pipeline_fails_on_is_left_out(trained, tmp_path):
    cfg = Config.fromfile(trained / 'config.py')
    cfg.test_dataloader.dataset.pipeline[1].update(scale=(48, 32), keep_ratio=True)
    cv2.imwrite(str(tmp_path / 'narrow.png'), np.zeros((900, 3, 3), dtype=np.uint8))
    found = MultiLabelInferencer(cfg, trained / 'checkpoint.pth', 'cpu', show_progress=False)(
        [tmp_path / 'narrow.png', trained / 'images/a.png']
    )
    assert [p['image'] for p in found['predictions']] == [str(trained / 'images/a.png')]
    (skipped,) = found['skipped']
    assert skipped['image'] == str(tmp_path / 'narrow.png') and "in function 'resize'" in skipped['reason']


def test_pictures(inferencer, trained, tmp_path):
    images = [trained / 'images/a.png', np.full((40, 60, 3), 230, dtype=np.uint8)]
    found = inferencer(images, picture_dir=tmp_path, return_vis=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['00000001.jpg', 'a.png']
    assert [picture.shape for picture in found['visualization']] == [(320, 480, 3)] * 2
    assert found['visualization'][0][-1, -1].tolist() == [20, 20, 230]


def test_progress_bar_knows_the_number_of_batches(inferencer, trained, capsys):
    inferencer.show_progress = True
    try:
        inferencer(trained / 'images', batch_size=2)
    finally:
        inferencer.show_progress = False
    assert '100%' in capsys.readouterr().out


def test_nothing_to_label_is_named(inferencer, tmp_path):
    with pytest.raises(FileNotFoundError, match='nothing.jpg'):
        inferencer(tmp_path / 'nothing.jpg')
    with pytest.raises(ValueError, match='has no images'):
        inferencer(tmp_path)


def test_subfolders_are_named(trained, tmp_path, monkeypatch):
    logged = []
    monkeypatch.setattr('asl_mmdet.inferencer.print_log', lambda message, *_: logged.append(message))
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match='has no images .*; 2 subfolders are passed over: a, b. Give one of them'):
        image_files(tmp_path)
    shutil.copy(trained / 'images/a.png', tmp_path)
    assert image_files(tmp_path) == [str(tmp_path / 'a.png')]
    assert logged == [f'{tmp_path}: 2 subfolders are passed over: a, b']


def test_class_names_come_from_the_checkpoint_then_the_config(trained, tmp_path):
    content = torch.load(trained / 'checkpoint.pth')
    torch.save(content['state_dict'], tmp_path / 'plain.pth')
    cfg = Config.fromfile(trained / 'config.py')
    unnamed = MultiLabelInferencer(cfg, tmp_path / 'plain.pth', 'cpu', False)
    assert names(unnamed(trained / 'images/d.png')['predictions']) == [{'class 1'}]
    cfg.test_dataloader.dataset.metainfo = dict(classes=['b', 'g', 'r'])
    assert MultiLabelInferencer(cfg, tmp_path / 'plain.pth', 'cpu', False).model.dataset_meta['classes'] == (
        'b',
        'g',
        'r',
    )
    (tmp_path / 'classes.txt').write_text('c\nb\na\n')
    for dataset, classes in (
        (dict(type='CSVMultiLabelDataset', metainfo=dict(classes=str(tmp_path / 'classes.txt'))), ('c', 'b', 'a')),
        (dict(type='CocoDataset', metainfo=dict(classes=('d', 'e', 'f'))), ('d', 'e', 'f')),
        (dict(type='RepeatDataset', times=2), ('class 0', 'class 1', 'class 2')),
    ):
        dataset['pipeline'] = cfg.test_dataloader.dataset.pipeline
        one = Config(dict(cfg, test_dataloader=dict(dataset=dataset)))
        assert MultiLabelInferencer(one, tmp_path / 'plain.pth', 'cpu', False).model.dataset_meta['classes'] == classes
    one.test_dataloader.dataset.type = 'VOCMultiLabelDataset'
    with pytest.raises(ValueError, match='test_dataloader.dataset names 20 classes, .* model.head.num_classes=3'):
        MultiLabelInferencer(one, tmp_path / 'plain.pth', 'cpu', False)
    cfg.test_dataloader.dataset.metainfo = dict(classes=['b', 'g'])
    with pytest.raises(ValueError, match='names 2 classes, but the config has model.head.num_classes=3'):
        MultiLabelInferencer(cfg, tmp_path / 'plain.pth', 'cpu', False)


def test_files_that_do_not_fit_are_named(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match='no config file'):
        MultiLabelInferencer(tmp_path / 'nothing.py', trained / 'checkpoint.pth')
    with pytest.raises(FileNotFoundError, match='nothing.pth'):
        MultiLabelInferencer(trained / 'config.py', tmp_path / 'nothing.pth')
    cfg = Config.fromfile(trained / 'config.py')
    cfg.model.head.num_classes = 4
    with pytest.raises(ValueError, match='2 tensors are missing or of another shape, head.fc.weight among them'):
        MultiLabelInferencer(cfg, trained / 'checkpoint.pth')
    cfg.test_dataloader.dataset.pipeline.pop(0)
    cfg.model.head.num_classes = 3
    with pytest.raises(ValueError, match='must begin with LoadImageFromFile'):
        MultiLabelInferencer(cfg, trained / 'checkpoint.pth')


# ---------------------------------------------------------------------------------------------------------- tools/infer


@pytest.fixture
def infer(monkeypatch, capsys):
    """Run the tool in this process; returns its exit status and what it printed."""

    def run(*args):
        monkeypatch.setattr('sys.argv', ['infer.py', *map(str, args), '--device', 'cpu'])
        status = 0
        try:
            runpy.run_path(str(ROOT / 'tools/infer.py'), run_name='__main__')
        except SystemExit as end:
            status = end.code
        return status, ''.join(capsys.readouterr())

    return run


def test_tool_labels_a_folder(trained, infer, tmp_path):
    images = tmp_path / 'images'
    images.mkdir()
    for file in (trained / 'images').iterdir():
        (images / file.name).write_bytes(file.read_bytes())
    (images / 'broken.jpg').write_bytes(b'\xff\xd8\xff\xe0 and no more')
    done = run_tool(
        'tools/infer.py',
        images,
        trained / 'config.py',
        trained / 'checkpoint.pth',
        '--out',
        tmp_path / 'out.json',
        '--show-dir',
        tmp_path / 'pictures',
        '--all-scores',
        '--batch-size',
        '3',
        '--score-thr',
        '0.6',
    )
    assert done.returncode == 0, done.stdout
    assert (
        '4 of 5 images' in done.stdout
        and '1 could not be read or prepared' in done.stdout
        and 'broken.jpg' in done.stdout
    )
    found = json.loads((tmp_path / 'out.json').read_text())
    assert names(found) == [{'blue'}, {'blue', 'red'}, set(), {'green'}] and len(found[0]['scores']) == 3
    assert sorted(path.name for path in (tmp_path / 'pictures').iterdir()) == ['a.png', 'b.png', 'c.png', 'd.png']
    status, _ = infer(images, trained / 'config.py', trained / 'checkpoint.pth', '--out', tmp_path / 'out.csv')
    assert status == 0
    with open(tmp_path / 'out.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [set(filter(None, row['labels'].split(';'))) for row in rows] == names(found)
    assert rows[3]['image'].endswith('d.png') and 0.9 < float(rows[3]['scores']) < 1


def test_tool_finds_objects(shapes, infer, tmp_path, monkeypatch):
    name = 'fcos/fcos_tresnet-narrow_fpn_asl_shapes.py'
    model = MODELS.build(Config.fromfile(ROOT / 'configs' / name).model)
    torch.save(
        dict(
            meta=dict(dataset_meta=dict(classes=('circle', 'ring', 'square', 'triangle', 'star', 'cross'))),
            state_dict=model.state_dict(),
        ),
        tmp_path / 'detector.pth',
    )
    images = tmp_path / 'images'
    images.mkdir()
    pictures = sorted(shapes.glob('**/*.png'))[:3] or sorted(shapes.glob('**/*.jpg'))[:3]
    for file in pictures:
        (images / file.name).write_bytes(file.read_bytes())
    (images / 'broken.jpg').write_text('no image')
    (images / 'empty.jpg').touch()
    cv2.imwrite(str(images / 'narrow.png'), np.zeros((900, 3, 3), dtype=np.uint8))  # scaled to a width of 0
    common = (images, ROOT / 'configs' / name, tmp_path / 'detector.pth', '--score-thr', '0', '--batch-size', '2')
    status, printed = infer(
        *common,
        '--out',
        tmp_path / 'out.json',
        '--show-dir',
        tmp_path / 'pictures',
        '--cfg-options',
        'model.test_cfg.score_thr=0',
    )
    assert infer(*common, '--all-scores', '--out', tmp_path / 'out.json')[0] == 2
    assert status == 0 and '3 of 6 images' in printed and 'broken.jpg cannot be read' in printed
    assert 'Failed to add' not in printed
    assert 'empty.jpg cannot be read: the file is empty' in printed
    assert re.search("narrow.png cannot be prepared: .* in function 'resize'\n", printed)
    found = json.loads((tmp_path / 'out.json').read_text())
    assert [result['image'] for result in found] == [str(images / file.name) for file in pictures]
    one = found[0]['objects'][0]
    assert set(one) == {'label', 'index', 'score', 'box'} and len(one['box']) == 4
    assert len(list((tmp_path / 'pictures').iterdir())) == 3
    # Without boxes the pictures are the images, but for what matplotlib resamples.
    plain = ('--score-thr', '1', '--show-dir', tmp_path / 'plain', '--out', tmp_path / 'plain.json')
    assert infer(*common[:3], *plain)[0] == 0
    for file in pictures:
        image, drawn = (cv2.imread(str(path)).astype(float) for path in (file, tmp_path / 'plain' / file.name))
        assert np.abs(drawn - image).mean() < np.abs(drawn[..., ::-1] - image).mean()
    # Folded, but not compiled, which takes a minute.
    monkeypatch.setattr('asl_mmdet.fast_inference.fast_inference', lambda model, compile: fast_inference(model))
    options = ('--fast', '--cfg-options', 'model.test_cfg.score_thr=0')
    status, _ = infer(*common, '--out', tmp_path / 'out.csv', *options)
    assert status == 0
    with open(tmp_path / 'out.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(result['objects']) for result in found)
    # Names that the weights do not bring are those of the config's data, not COCO's.
    torch.save(model.state_dict(), tmp_path / 'detector.pth')
    options = ('--out', tmp_path / 'unnamed.json', '--cfg-options', 'model.test_cfg.score_thr=0')
    assert infer(*common, *options)[0] == 0
    assert json.loads((tmp_path / 'unnamed.json').read_text()) == found
    assert float(rows[0]['x1']) == pytest.approx(one['box'][0], abs=0.06) and rows[0]['label'] == one['label']


def test_tool_prints_what_is_not_written(trained, infer):
    status, printed = infer(trained / 'images', trained / 'config.py', trained / 'checkpoint.pth')
    assert status == 0 and re.search(r'd\.png: green 0\.9\d\n', printed) and '4 of 4 images\n' in printed


@pytest.mark.parametrize(('options', 'compiled'), [(['--fast'], [True]), ([], [])])
def test_tool_is_faster_on_request(trained, infer, monkeypatch, options, compiled):
    asked = []

    def folds(model, compile):
        asked.append(compile)
        return fast_inference(model)

    monkeypatch.setattr('asl_mmdet.fast_inference.fast_inference', folds)
    status, printed = infer(trained / 'images', trained / 'config.py', trained / 'checkpoint.pth', *options)
    assert status == 0 and re.search(r'd\.png: green 0\.9\d\n', printed)
    assert asked == compiled


def test_tool_names_what_is_wrong(trained, infer, tmp_path):
    good = trained / 'images', trained / 'config.py', trained / 'checkpoint.pth'
    for wrong, message in (
        ((tmp_path / 'nothing', *good[1:]), 'there is no image or folder'),
        ((*good[:2], tmp_path / 'nothing.pth'), 'there is no file'),
        ((*good, '--out', 'a.xml'), 'written as .json or .csv'),
        ((*good, '--all-scores'), 'written as JSON'),
        ((*good, '--batch-size', '0'), '--batch-size: 0 is below 1'),
        ((*good, '--score-thr', '7'), r'--score-thr: 7 does not lie in [0, 1]'),
        ((good[0], good[2], good[1]), 'checkpoint.pth is no config, whose name ends in .py, .yml, .yaml, .json. The'),
        ((*good, '--cfg-options', 'head.thr=0.01'), "--cfg-options head.thr: the config has no 'head'"),
        ((*good, '--cfg-options', 'model='), 'config.py has no model'),
        ((*good[:2], 'http://127.0.0.1:9/a.pth'), "'http://127.0.0.1:9/a.pth' cannot be downloaded: "),
        ((*good, '--cfg-options', 'model.type=Nothing'), 'no model of type Nothing'),
        ((*good, '--cfg-options', 'model.head.num_classes=4'), 'does not fit the model'),
    ):
        status, printed = infer(*wrong)
        assert status != 0 and message in f'{status}\n{printed}', (wrong, printed)
