"""tools/dataset_converters on exports made by hand: what is written is loaded by the data sets that it is meant for."""

import importlib.util
import json
import math
import re
import sys

import cv2
import numpy as np
import pytest
from mmdet.datasets import CocoDataset

from asl_mmdet.datasets import CocoMultiLabelDataset, CSVMultiLabelDataset
from asl_mmdet.datasets.detection import check_coco_detection
from tests.conftest import ROOT, run_tool

TOOLS = ROOT / 'tools/dataset_converters'


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def convert(monkeypatch, capsys, new_loggers):
    """Runs a converter in this process; returns its exit status, and what it prints and logs."""

    def run(name, *args):
        monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, args)])
        status = 0
        try:
            load_tool(name).main()
        except SystemExit as error:
            status = error.code
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding='utf-8')
    return path


def picture(path, width=40, height=20, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((height, width, 3), value, dtype=np.uint8))
    return path


def labels_in(dataset):
    classes = dataset.metainfo['classes']
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    return {info['img_path'].rpartition('/')[2]: [classes[i] for i in info['gt_label']] for info in infos}


def boxes_in(path, root):
    """By image, (class, left, top, right, bottom), as mmdet's data set gives them to the pipeline."""
    classes = [entry['name'] for entry in json.loads(path.read_text())['categories']]
    check_coco_detection(str(path), str(root), classes)
    dataset = CocoDataset(
        ann_file=str(path), data_prefix=dict(img=str(root)), metainfo=dict(classes=tuple(classes)), pipeline=[]
    )
    return {
        info['img_path'].removeprefix(f'{root}/'): [
            (classes[one['bbox_label']], *one['bbox']) for one in info['instances']
        ]
        for info in (dataset.get_data_info(i) for i in range(len(dataset)))
    }


def labels_of_boxes(path, root, **kwargs):
    return labels_in(CocoMultiLabelDataset(str(path), data_prefix=dict(img=str(root)), cache=False, **kwargs))


def printed_dataset(output, kind):
    """The data set that the output tells to write into a config."""
    (text,) = re.findall(rf"^dict\(type='{kind}', (.*)\)$", output, re.M)
    return eval(f'dict({text})')


# ------------------------------------------------------------------------------------------------------------- folders


@pytest.fixture
def folders(tmp_path):
    root = tmp_path / 'pictures'
    picture(root / 'dog/a.png', value=1)
    for name in ('copy of a', 'another one'):
        picture(root / f'sea side/{name}.png', value=1)
    picture(root / 'sea side/b.png', value=2)
    picture(root / 'dog/b.png', value=3)  # another picture of that name
    picture(root / 'c.png', value=4)
    for name in ('cat', '.cache'):
        (root / name).mkdir()
    write(root / 'dog/notes.txt', 'no picture')
    return root


def test_folders_become_a_table(folders, tmp_path, convert):
    status, output = convert('folders2csv', folders, tmp_path / 'out/labels.csv')
    assert status == 0, output
    dataset = CSVMultiLabelDataset(**printed_dataset(output, 'CSVMultiLabelDataset'))
    assert dataset.metainfo['classes'] == ('cat', 'dog', 'sea side')
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    assert {info['img_path'].removeprefix(f'{folders}/'): info['gt_label'].tolist() for info in infos} == {
        'c.png': [],
        'dog/a.png': [1, 2],
        'dog/b.png': [1],
        'sea side/b.png': [2],
    }
    assert '4 images, 1 of them without labels; 4 labels. 3 classes: cat 0, dog 2, sea side 2' in output
    assert '1 images have several labels' in output and '2 files are copies, byte by byte' in output
    assert 'no picture has the label cat' in output and '1 files that are no pictures: 1 .txt' in output


def test_the_same_folders_give_the_same_bytes_and_nothing_is_overwritten(folders, tmp_path, convert):
    outs = [tmp_path / name / 'labels.csv' for name in ('one', 'two')]
    for out in outs:
        assert convert('folders2csv', folders, out)[0] == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert [path.name for path in sorted(outs[0].parent.iterdir())] == ['labels.csv', 'labels_classes.txt']
    outs[0].write_text('mine')
    status, output = convert('folders2csv', folders, outs[0])
    assert status == 1 and f'{outs[0]} exists already; --overwrite' in output
    assert outs[0].read_text() == 'mine'
    assert convert('folders2csv', folders, outs[0], '--overwrite')[0] == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_labels_that_look_like_numbers_or_hold_separators(tmp_path, convert):
    for i, label in enumerate(('0', 'sofa, chair', 'test', 'up;down')):
        picture(tmp_path / 'in' / label / 'a.png', value=i)
    status, output = convert('folders2csv', tmp_path / 'in', tmp_path / 'labels.csv')
    assert status == 0, output
    dataset = CSVMultiLabelDataset(**printed_dataset(output, 'CSVMultiLabelDataset'))
    assert dataset.metainfo['classes'] == ('0', 'sofa, chair', 'test', 'up;down')
    assert [dataset.get_data_info(i)['gt_label'].tolist() for i in range(4)] == [[0], [1], [2], [3]]


def test_nested_folders_are_one_label_or_all(tmp_path, convert):
    picture(tmp_path / 'in/dog/poodle/a.png', value=1)
    picture(tmp_path / 'in/dog/b.png', value=2)
    command = ('folders2csv', tmp_path / 'in', tmp_path / 'labels.csv')
    status, output = convert(*command)
    assert status == 1 and 'in/dog/poodle/a.png lies in a folder within a folder' in output
    for choice, expected in (
        ('first', {'a.png': ['dog'], 'b.png': ['dog']}),
        ('all', {'a.png': ['dog', 'poodle'], 'b.png': ['dog']}),
    ):
        status, output = convert(*command, '--nested', choice, '--overwrite')
        assert status == 0, output
        assert labels_in(CSVMultiLabelDataset(**printed_dataset(output, 'CSVMultiLabelDataset'))) == expected


def test_a_second_table_takes_the_classes_of_the_first(folders, tmp_path, convert):
    (tmp_path / 'classes.txt').write_text('sea side\ndog\ncat\n')
    status, output = convert('folders2csv', folders, tmp_path / 'l.csv', '--classes', tmp_path / 'classes.txt')
    assert status == 0 and (tmp_path / 'l_classes.txt').read_text() == 'sea side\ndog\ncat\n'
    (tmp_path / 'classes.txt').write_text('sea side\ncat\n')
    status, output = convert('folders2csv', folders, tmp_path / 'm.csv', '--classes', tmp_path / 'classes.txt')
    assert status == 1 and "the folder 'dog' is not among --classes" in output


FOLDER_FAULTS = {
    'splits': (lambda root: [picture(root / f'{s}/dog/a.png') for s in ('train', 'val')], 'has the folders train, val'),
    'Splits': (lambda root: [picture(root / f'{s}/a.png') for s in ('Train', 'VAL')], 'has the folders Train, VAL'),
    'empty picture': (lambda root: write(root / 'dog/a.png', ''), 'dog/a.png is no picture .*the file is empty'),
    'no picture': (lambda root: write(root / 'dog/a.png', '<html>'), 'dog/a.png is no picture that can be read'),
    'none at all': (lambda root: write(root / 'dog/a.txt', ''), r'in has no picture \(.bmp'),
    'none': (lambda root: None, 'there is no folder .*in'),
    'separators': (lambda root: picture(root / 'a;b|c\td/a.png'), 'one of which must separate them'),
    'blanks': (lambda root: picture(root / 'dog /a.png'), "'dog ' is no name of a class"),
}


@pytest.mark.parametrize('what', FOLDER_FAULTS)
def test_faulty_folders_are_refused(tmp_path, convert, what):
    spoil, message = FOLDER_FAULTS[what]
    spoil(tmp_path / 'in')
    status, output = convert('folders2csv', tmp_path / 'in', tmp_path / 'labels.csv')
    assert status == 1 and re.search(message, output), output
    assert not (tmp_path / 'labels.csv').exists()


# ---------------------------------------------------------------------------------------------------------------- YOLO


@pytest.fixture
def yolo(tmp_path):
    root = tmp_path / 'yolo'
    for name in ('train/a', 'train/b', 'train/images/c', 'val/d'):
        picture(root / f'images/{name}.png')
    write(root / 'labels/train/a.txt', '1 0.5 0.5 0.5 0.5\n\n0 0.125 0.25 0.25 0.5\n1 0.5 0.5 0.5 0.5\n')
    write(root / 'labels/train/b.txt', '')
    write(root / 'labels/val/d.txt', '0 0 0 1 0 1 1\n1 0.95 1.005 0.2 0.2\n0 0.5 0.5 0.01 0.01\n')
    write(root / 'data.yaml', 'train: images/train\nval: images/val\ntest:\nnc: 2\nnames: {0: dog, 1: cat}\n')
    return root


def test_yolo_becomes_coco(yolo, tmp_path, convert):
    # ultralytics takes the last folder called images
    (yolo / 'images/train/labels').mkdir()
    picture(yolo / 'images/train2/of another split.png')
    write(yolo / 'images/train/labels/c.txt', '1 0.5 0.5 1 1\n')
    status, output = convert('yolo2coco', yolo, tmp_path / 'out')
    assert status == 0, output
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['train.json', 'val.json']
    train = tmp_path / 'out/train.json'
    assert [entry['name'] for entry in json.loads(train.read_text())['categories']] == ['dog', 'cat']
    assert boxes_in(train, yolo) == {
        'images/train/a.png': [('cat', 10, 5, 30, 15), ('dog', 0, 0, 10, 10)],
        'images/train/b.png': [],
        'images/train/images/c.png': [('cat', 0, 0, 40, 20)],
    }
    assert labels_of_boxes(train, yolo, unannotated='keep') == {
        'a.png': ['dog', 'cat'],
        'b.png': [],
        'c.png': ['cat'],
    }
    # A polygon, a box that is cut at the right edge, and one that is smaller than a pixel, which is left out.
    val = tmp_path / 'out/val.json'
    ((_, boxes),) = boxes_in(val, yolo).items()
    assert boxes == [('dog', 0, 0, 40, 20), ('cat', pytest.approx(34), pytest.approx(18.1), 40, 20)]
    first, _ = json.loads(val.read_text())['annotations']
    assert first['segmentation'] == [[0, 0, 40, 0, 40, 20]]
    assert '3 images, 1 of them without labels; 3 boxes. 2 classes: dog 1, cat 2' in output
    assert '1 lines that repeat another' in output
    assert '1 boxes reached out of their image' in output and '1 boxes have less than a pixel in width' in output
    for kind in ('CocoMultiLabelDataset', 'CocoDataset'):
        line = rf"^dict\(type='{kind}', data_root='', ann_file='\S+/(train|val).json'"
        assert len(re.findall(line, output, re.M)) == 2


@pytest.mark.parametrize('source', ['.', 'obj.names'])
def test_yolo_side_by_side_without_splits(tmp_path, convert, source):
    """As CVAT's YOLO 1.1 and LabelImg write it, and pictures that nothing says anything of."""
    for name in ('a', 'b'):
        picture(tmp_path / f'in/obj_train_data/{name}.png')
    write(tmp_path / 'in/obj_train_data/a.txt', '0 0.5 0.5 1 1')
    write(tmp_path / 'in/obj.names', 'dog\ncat\n')
    status, output = convert('yolo2coco', tmp_path / 'in' / source, tmp_path / 'out')
    assert status == 0, output
    assert boxes_in(tmp_path / 'out/instances.json', tmp_path / 'in') == {
        'obj_train_data/a.png': [('dog', 0, 0, 40, 20)],
        'obj_train_data/b.png': [],
    }
    assert '1 images have no label file' in output


@pytest.mark.parametrize('labels', ['labels', 'labels/train'])
def test_classes_beside_the_labels(tmp_path, convert, labels):
    """As labelImg writes them."""
    picture(tmp_path / f'in/{labels.replace("labels", "images")}/a.png')
    write(tmp_path / f'in/{labels}/a.txt', '1 0.5 0.5 1 1')
    write(tmp_path / f'in/{labels}/classes.txt', 'dog\ncat\n')
    if labels != 'labels':
        write(tmp_path / 'in/classes.txt', 'dog\ncat\n')
    status, output = convert('yolo2coco', tmp_path / 'in', tmp_path / 'out')
    assert status == 0, output
    (boxes,) = boxes_in(tmp_path / 'out/instances.json', tmp_path / 'in').values()
    assert boxes == [('cat', 0, 0, 40, 20)]


def test_labels_of_pictures_that_cannot_be_read(tmp_path, convert):
    root = tmp_path / 'in'
    picture(root / 'images/cam1/A.png')
    write(root / 'images/cam2/b.heic', '')
    write(root / 'labels/cam1/A.TXT', '0 0.5 0.5 1 1')
    write(root / 'labels/cam2/b.txt', '0 0.5 0.5 1 1')
    write(root / 'labels/cam1/.ipynb_checkpoints/A-checkpoint.txt', '')
    write(root / 'classes.txt', 'dog\ncat\n')
    command = ('yolo2coco', root, tmp_path / 'out')
    status, output = convert(*command)
    assert status == 1 and 'in: labels/cam2/b.txt without a picture. Give' in output
    status, output = convert(*command, '--drop-missing')
    assert status == 0, output
    assert boxes_in(tmp_path / 'out/instances.json', root) == {'images/cam1/A.png': [('dog', 0, 0, 40, 20)]}
    assert 'labels/cam2/b.txt without a picture; left out' in output
    assert '1 files that are no pictures: 1 .heic' in output


def test_splits_that_were_not_exported_are_left_out(yolo, tmp_path, convert):
    write(yolo / 'data.yaml', 'train: images/train\nval: images/val\ntest: ../test/images\nnames: [dog, cat]\n')
    out = tmp_path / 'out'
    status, output = convert('yolo2coco', yolo, out)
    assert status == 1 and "test: '../test/images' is neither" in output
    status, output = convert('yolo2coco', yolo, out, '--split', 'train', 'val')
    assert status == 0 and sorted(path.name for path in out.iterdir()) == ['train.json', 'val.json'], output
    (yolo / 'images/empty').mkdir()
    write(yolo / 'data.yaml', 'train: images/empty\nval: images/val\nnames: [dog, cat]\n')
    status, output = convert('yolo2coco', yolo, tmp_path / 'more')
    assert status == 1 and "train: 'images/empty' has no picture; --split names" in output
    status, output = convert('yolo2coco', yolo, tmp_path / 'more', '--split', 'test')
    assert status == 1 and "data.yaml has no test; --split may be any of ['train', 'val']" in output


def test_pictures_of_several_splits_are_counted(yolo, tmp_path, convert):
    status, output = convert('yolo2coco', yolo, tmp_path / 'out')
    assert status == 0 and 'are in both' not in output, output
    write(yolo / 'data.yaml', 'train: images/train\nval: [images/val, images/train/images]\nnames: [dog, cat]\n')
    status, output = convert('yolo2coco', yolo, tmp_path / 'more')
    assert status == 0 and '1 pictures are in both train and val' in output, output


def test_absolute_paths_below_a_relative_root(yolo, tmp_path, convert, monkeypatch):
    write(yolo / 'data.yaml', f'path: {yolo}\ntrain: {yolo}/images/train\nnames: [dog, cat]\n')
    monkeypatch.chdir(tmp_path)
    status, output = convert('yolo2coco', 'yolo', 'out')
    assert status == 0 and "img_path='yolo/'" in output, output


def test_yolo_with_lists_another_root_and_key_points(yolo, tmp_path, convert):
    write(
        tmp_path / 'elsewhere/data.yaml',
        'path: /content/yolo\ntrain: [list.txt, ../images/val]\nkpt_shape: [1, 3]\nnames: [dog, cat]\n',
    )
    write(yolo / 'list.txt', '/content/yolo/images/train/a.png\n./images/train/gone.png\n')
    write(yolo / 'labels/train/a.txt', '1 0.5 0.5 0.5 0.5 0.4 0.4 2\n')
    write(yolo / 'labels/val/d.txt', '')
    command = ('yolo2coco', tmp_path / 'elsewhere', tmp_path / 'out', '--root', yolo)
    status, output = convert(*command)
    assert status == 1 and 'data.yaml are not in' in output and './images/train/gone.png' in output
    status, output = convert(*command, '--drop-missing')
    assert status == 0, output
    assert boxes_in(tmp_path / 'out/train.json', yolo) == {
        'images/train/a.png': [('cat', 10, 5, 30, 15)],
        'images/val/d.png': [],
    }
    assert 'key points are left out' in output and 'gone.png; left out' in output


def on_line(text):
    return lambda root: write(root / 'labels/train/a.txt', f'0 0.5 0.5 1 1\n{text}\n')


def described(text):
    return lambda root: write(root / 'data.yaml', text)


YOLO_FAULTS = {
    'class': (on_line('2 0.5 0.5 1 1'), r"train/a.txt, line 2: class '2' is none of 0 to 1"),
    'name': (on_line('dog 0.5 0.5 1 1'), r"train/a.txt, line 2: class 'dog'"),
    'pixels': (on_line('1 20 10 40 20'), "line 2: '1 20 10 40 20' is not in fractions"),
    'NaN': (on_line('1 nan 0.5 1 1'), 'line 2: .* is not in fractions'),
    'words': (on_line('1 a b c d'), 'line 2: .* is not in fractions'),
    'confidence': (on_line('1 0.5 0.5 1 1 0.9'), 'has 5 numbers .* a prediction with its confidence'),
    'odd': (on_line('1 0 0 1 0 1 1 0.5'), 'has 7 numbers behind the class'),
    'far outside': (on_line('1 0.5 1.02 0.5 0.5'), 'line 2: .* is not in fractions'),
    'too few': (on_line('1 0.5 0.5'), 'has 2 numbers behind the class'),
    'negative': (on_line('1 0.5 0.5 -0.001 0.5'), 'has a negative width or height'),
    'bytes': (lambda root: (root / 'labels/train/a.txt').write_bytes(b'\xff\xfe\x00'), 'a.txt is not a text file'),
    'broken link': (
        lambda root: ((root / 'labels/val/d.txt').unlink(), (root / 'labels/val/d.txt').symlink_to('gone.txt')),
        'd.txt is not a text file: .*No such file',
    ),
    'orphan': (lambda root: write(root / 'labels/train/x.txt', ''), 'labels/train/x.txt without a picture'),
    'wrong folder': (lambda root: write(root / 'labels/b.txt', ''), 'labels/b.txt without a picture'),
    'no YAML': (described('names: [dog'), 'data.yaml is not a YAML file'),
    'no names': (described('train: images/train'), 'names is None, neither a list'),
    'gaps': (described('train: images/train\nnames: {0: a, 2: b}'), 'names is {.*}, neither'),
    'nc': (described('train: images/train\nnc: 3\nnames: [a, b]'), 'nc is 3, but 2 classes'),
    'twice': (described('train: images/train\nnames: [a, a]'), "data.yaml names class 'a' twice"),
    'truth': (described('train: images/train\nnames: [yes, no]'), 'names holds True, which is no text'),
    'valid': (described('train: images/train\nvalid: images/val\nnames: [a, b]'), 'valid is none of the splits'),
    'Val': (described('train: images/train\nVal: images/val\nnames: [a, b]'), 'Val is none of the splits'),
    'nowhere': (
        described('train: images/tarin\nnames: [a, b]'),
        "train: 'images/tarin' is neither a folder nor a list .*, --split the splits to write",
    ),
    'outside': (described('train: ../../..\nnames: [a, b]'), "train: '../../..' is neither a folder nor a list below"),
    'no labels': (
        described('val: images/train/images\nnames: [a, b]'),
        'none of the 1 pictures of val has a label file, .*c.txt; --split names the splits to write',
    ),
    'clash': (lambda root: picture(root / 'images/train/a.jpg'), 'have one label file, labels/train/a.txt'),
    'several': (lambda root: write(root / 'more.yaml', ''), 'has data.yaml and more.yaml'),
    'none': (lambda root: (root / 'data.yaml').unlink(), 'neither data.yaml nor classes.txt'),
}


@pytest.mark.parametrize('what', YOLO_FAULTS)
def test_faulty_yolo_is_refused(yolo, tmp_path, convert, what):
    spoil, message = YOLO_FAULTS[what]
    spoil(yolo)
    status, output = convert('yolo2coco', yolo, tmp_path / 'out')
    assert status == 1 and re.search(message, output), output
    assert not (tmp_path / 'out').exists()


# -------------------------------------------------------------------------------------------------------- Label Studio


def region(kind='rectanglelabels', labels=('dog',), size=(40, 20), **value):
    return dict(
        type=kind,
        original_width=size[0],
        original_height=size[1],
        image_rotation=0,
        value={**value, kind: list(labels)},
    )


def task(number, image, *annotations, **more):
    return dict(id=number, data=dict(image=image), annotations=list(annotations), **more)


def annotation(*results, **more):
    return dict(id=1, result=list(results), was_cancelled=False, **more)


@pytest.fixture
def studio(tmp_path):
    root = tmp_path / 'pictures'
    for i, name in enumerate(('a.png', 'b c.png', 'sub/d.png', 'e.png', '0123abcd-f.png')):
        picture(root / name, value=i)
    picture(root / 'tall.png', width=20, height=40)
    box = dict(x=25, y=50, width=50, height=25, rotation=0)
    return root, [
        task(1, '/data/upload/3/9f8e7d6c-%61.png', annotation(region(**box), region(labels=['cat'], **box))),
        task(2, 'https://server/x/b%20c.png?token=1', annotation()),
        task(3, '/data/local-files/?d=sub/d.png', annotation(region(**dict(box, rotation=90)))),
        task(4, 's3://bucket/e.png'),
        task(5, '/data/upload/3/0123abcd-f.png', dict(annotation(), was_cancelled=True)),
        task(
            6,
            'tall.png',
            annotation(region('polygonlabels', ['cat'], (200, 400), points=[[0, 0], [50, 0], [50, 50]])),
        ),
    ]


def test_label_studio_boxes_become_coco(studio, tmp_path, convert):
    root, tasks = studio
    tasks[1]['annotations'][0]['result'] = [
        dict(type='choices', value=dict(choices=['sea'])),
        dict(type='relation', from_id='a', to_id='b'),
        dict(type='choices', value=dict(choices=['big'], points=[[0, 0], [50, 0], [50, 50]])),
        region(labels=[], x=0, y=0, width=50, height=50, rotation=90),
    ]
    tasks.append(task(7, 'g.png'))
    export = write(tmp_path / 'export.json', tasks)
    out = tmp_path / 'boxes.json'
    status, output = convert('labelstudio2coco', export, root, out)
    assert status == 0, output
    found = boxes_in(out, root)
    # 40 x 20: 25 % is 10 pixels of the width; a quarter turn around (10, 10) swings a box of 20 x 5 to the lower left.
    assert found == {
        'a.png': [('dog', 10, 10, 30, 15), ('cat', 10, 10, 30, 15)],
        'b c.png': [],
        'sub/d.png': [('dog', 5, 10, 10, 20)],
        'tall.png': [('cat', 0, 0, 10, 20)],
    }
    assert labels_of_boxes(out, root, unannotated='keep')['a.png'] == ['cat', 'dog']
    assert '2 tasks that nobody has annotated' in output and '1 tasks that were skipped' in output
    assert (
        '1 boxes are rotated' in output
        and 'left out: 2 choices, 1 rectanglelabels without a label, 1 relation' in output
    )
    assert '1 boxes reached out of their image and were cut' in output


def choice(*labels, **value):
    return dict(type='choices', value=dict(choices=list(labels), **value))


def test_label_studio_choices_become_a_table(studio, tmp_path, convert):
    root, tasks = studio
    tasks[0]['annotations'] = [
        annotation(
            choice('sea', 'dog'),
            region(x=0, y=0, width=1, height=1),
            choice('big', x=0, y=0),
            choice('huge', points=[]),
        ),
    ]
    tasks[2]['annotations'] = [
        annotation(choice('sky'), created_at='2023-12-01', updated_at='2024-02-01'),
        annotation(choice('sea'), created_at='2024-01-01'),
    ]
    tasks[5]['annotations'] = [annotation(choice('sky'))]
    export = write(tmp_path / 'export.json', tasks)
    command = ('labelstudio2coco', export, root, tmp_path / 'labels.csv')
    status, output = convert(*command)
    assert status == 1 and 'task 3 has 2 annotations: --several latest or union' in output
    for several, expected in (('latest', ['sky']), ('union', ['sea', 'sky'])):
        status, output = convert(*command, '--several', several, '--overwrite')
        assert status == 0, output
        assert labels_in(CSVMultiLabelDataset(**printed_dataset(output, 'CSVMultiLabelDataset'))) == {
            'a.png': ['dog', 'sea'],
            'b c.png': [],
            'd.png': expected,
            'tall.png': ['sky'],
        }
    assert 'left out: 2 choices of regions, 1 rectanglelabels' in output
    write(tmp_path / 'classes.txt', 'sky\nsea\ndog\n')
    status, output = convert(*command, '--several', 'latest', '--overwrite', '--classes', tmp_path / 'classes.txt')
    dataset = CSVMultiLabelDataset(**printed_dataset(output, 'CSVMultiLabelDataset'))
    assert dataset.metainfo['classes'] == ('sky', 'sea', 'dog')


def test_an_export_of_label_studio_in_coco_format_is_read_as_it_is(studio, tmp_path, convert):
    """For training: numbers from 0 and ``ignore`` beside ``iscrowd``, as label-studio-converter writes them."""
    root, _ = studio
    content = dict(
        images=[dict(width=40, height=20, id=0, file_name='a.png')],
        categories=[dict(id=0, name='cat'), dict(id=1, name='dog')],
        annotations=[
            dict(id=0, image_id=0, category_id=1, segmentation=[], bbox=[10, 5, 20, 5], ignore=0, iscrowd=0, area=100)
        ],
        info=dict(year=2024),
    )
    result = write(tmp_path / 'result.json', content)
    assert boxes_in(result, root) == {'a.png': [('dog', 10, 5, 30, 10)]}
    assert labels_of_boxes(result, root) == {'a.png': ['dog']}
    status, output = convert('labelstudio2coco', result, root, tmp_path / 'out.json')
    assert status == 1 and 'is in COCO format already' in output


def first_result(**changes):
    return lambda tasks: tasks[0]['annotations'][0]['result'][0].update(changes)


def first_value(**changes):
    return lambda tasks: tasks[0]['annotations'][0]['result'][0]['value'].update(changes)


STUDIO_FAULTS = {
    'no JSON': (lambda tasks: '[{', 'is not a JSON file'),
    'JSON-MIN': (lambda tasks: json.dumps([dict(image='a.png', label=[])]), "export it as 'JSON', not JSON-MIN"),
    'nothing done': (lambda tasks: json.dumps([task(1, 'a.png')]), 'none of the 1 tasks has been annotated'),
    'no result': (lambda tasks: tasks[0]['annotations'][0].pop('result'), 'task 1: an annotation has no list result'),
    'missing': (
        lambda tasks: tasks[0]['data'].update(image='/x/gone.png'),
        '1 pictures of .* are not in .*/x/gone.png',
    ),
    'other prefix': (lambda tasks: tasks[0]['data'].update(image='/x/cafe-a.png'), 'are not in .*/x/cafe-a.png'),
    'outside': (lambda tasks: tasks[0]['data'].update(image='/etc/../passwd.png'), 'are not in .*passwd.png'),
    'inline': (lambda tasks: tasks[0]['data'].update(image='data:image/png;base64,AAAA'), 'task 1: none of its data'),
    'two': (lambda tasks: tasks[0]['data'].update(other='b.png'), 'task 1: 2 of its data .*--image-key'),
    'same': (lambda tasks: tasks[1]['data'].update(image='a.png'), 'task 2 is of .*a.png, as is .*task 1'),
    'turned': (first_result(image_rotation=90), 'after turning it by 90 degrees'),
    'other picture': (first_result(original_width=41), 'is 40 x 20, but was annotated as 41 x 20'),
    'number': (first_value(x=None), 'numbers .None, 50'),
    'text': (first_value(width='1'), "numbers .25, 50, '1'"),
    'infinite': (first_value(y=math.inf), 'numbers .25, inf'),
    'negative': (first_value(width=-1), 'a box is -1 by 25 percent'),
    'labels': (first_value(rectanglelabels='dog'), "rectanglelabels is 'dog', not a list"),
    'points': (
        lambda tasks: tasks[5]['annotations'][0]['result'][0]['value'].update(points=[[0, 0], [9, 9]]),
        'task 6: a polygon has the points',
    ),
}


@pytest.mark.parametrize('what', STUDIO_FAULTS)
def test_faulty_exports_of_label_studio_are_refused(studio, tmp_path, convert, what):
    root, tasks = studio
    spoil, message = STUDIO_FAULTS[what]
    text = spoil(tasks)
    export = write(tmp_path / 'export.json', text if isinstance(text, str) else json.dumps(tasks))
    status, output = convert('labelstudio2coco', export, root, tmp_path / 'boxes.json')
    assert status == 1 and re.search(message, output), output
    assert not (tmp_path / 'boxes.json').exists()


def test_label_studio_says_which_file_would_hold_what_there_is(studio, tmp_path, convert):
    root, tasks = studio
    export = write(tmp_path / 'export.json', tasks)
    status, output = convert('labelstudio2coco', export, root, tmp_path / 'labels.csv')
    assert status == 1 and 'no choices for whole images, but 1 polygonlabels, 3 rectanglelabels. Boxes' in output
    tasks[:] = [task(1, 'a.png', annotation(choice('sea')))]
    export = write(tmp_path / 'export.json', tasks)
    status, output = convert('labelstudio2coco', export, root, tmp_path / 'boxes.json')
    assert status == 1 and 'no boxes or polygons with labels, but 1 choices. Choices' in output
    assert convert('labelstudio2coco', export, root, tmp_path / 'boxes.txt')[0] == 2
    assert convert('labelstudio2coco', export, root, tmp_path / 'boxes.json', '--several', 'union')[0] == 2


# ---------------------------------------------------------------------------------------------------------------- CVAT

CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><id>1</id><labels>
    <label><name>dog</name><type>any</type><attributes><attribute><name>age</name></attribute></attributes></label>
    <label><name>cat &amp; kitten</name></label>
    <label><name>sky</name></label>
  </labels></task></meta>
  <image id="0" name="a.png" subset="train" width="40" height="20">
    <box label="dog" source="manual" occluded="0" xtl="10.0" ytl="5.0" xbr="30.5" ybr="15.0" rotation="0.0" z_order="0">
      <attribute name="age">3</attribute>
    </box>
    <box label="dog" xtl="15" ytl="5" xbr="25" ybr="15" rotation="45"></box>
    <tag label="sky" source="manual"></tag>
  </image>
  <image id="1" name="b.png" subset="train" width="40" height="20">
    <polygon label="cat &amp; kitten" points="0.00,0.00;20.00,0.00;20.00,10.00" z_order="0"></polygon>
    <points label="dog" points="1,1"></points>
  </image>
  <image id="2" name="a.png" subset="val" width="40" height="20"></image>
</annotations>
"""


@pytest.fixture
def cvat(tmp_path):
    for i, name in enumerate(('train/a.png', 'train/b.png', 'val/a.png')):
        picture(tmp_path / 'images' / name, value=i)
    return tmp_path / 'images'


def test_cvat_becomes_coco_and_a_table(cvat, tmp_path, convert):
    of_the_project = '<project><labels><label><name>dog</name></label></labels></project>'
    export = write(tmp_path / 'annotations.xml', CVAT.replace('</meta>', f'{of_the_project}</meta>'))
    status, output = convert('cvat2coco', export, cvat, tmp_path / 'boxes.json')
    assert status == 0, output
    found = boxes_in(tmp_path / 'boxes.json', cvat)
    (dog, turned), half = found['train/a.png'], 5 * math.sqrt(2)
    assert dog == ('dog', 10, 5, 30.5, 15)
    assert turned == ('dog', *(pytest.approx(v, abs=2e-3) for v in (20 - half, 10 - half, 20 + half, 10 + half)))
    assert found['train/b.png'] == [('cat & kitten', 0, 0, 20, 10)] and found['val/a.png'] == []
    assert [c['name'] for c in json.loads((tmp_path / 'boxes.json').read_text())['categories']] == [
        'dog',
        'cat & kitten',
        'sky',
    ]
    assert '1 boxes are rotated' in output and 'left out: 1 attributes, 1 points, 1 tag' in output
    status, output = convert('cvat2coco', export, cvat, tmp_path / 'tags.csv', '--subset', 'train')
    assert status == 0, output
    dataset = CSVMultiLabelDataset(**printed_dataset(output, 'CSVMultiLabelDataset'))
    assert labels_in(dataset) == {'a.png': ['sky'], 'b.png': []}
    assert dataset.metainfo['classes'] == ('dog', 'cat & kitten', 'sky')


CVAT_FAULTS = {
    'no XML': (lambda text: text[:-30], 'is not an XML file: .*line'),
    'other': (lambda text: '<annotation/>', '<annotation> is not the beginning'),
    'video': (lambda text: re.sub(r'<image.*</image>', '<track id="0"/>', text, flags=re.S), 'a track of a video'),
    'label': (
        lambda text: text.replace('box label="dog" xtl', 'box label="dgo" xtl'),
        "line 13: <box> has the label 'dgo'",
    ),
    'no labels': (lambda text: re.sub('<labels>.*</labels>', '', text, flags=re.S), 'declares no labels'),
    'number': (lambda text: text.replace('xtl="10.0"', 'xtl="ten"'), "line 10: <box> has xtl 'ten', no number"),
    'NaN': (lambda text: text.replace('ytl="5.0"', 'ytl="nan"'), "line 10: <box> has ytl 'nan'"),
    'no number': (lambda text: text.replace('ybr="15.0" ', ''), 'line 10: <box> has ybr None'),
    'reversed': (lambda text: text.replace('xtl="10.0"', 'xtl="31"'), 'line 10: <box> ends before it begins'),
    'points': (lambda text: text.replace('20.00,10.00', '20.00'), 'line 17: <polygon> has the points'),
    'two points': (lambda text: text.replace(';20.00,10.00', ''), 'line 17: <polygon> .* not three or more of x,y'),
    'size': (lambda text: text.replace('width="40"', 'width="41"'), 'a.png is 41 x 20 in CVAT, but 40 x 20'),
    'missing': (lambda text: text.replace('b.png', '../../b2.png'), '1 pictures of .* are not in .*b2.png'),
    'ambiguous': (lambda text: text.replace('subset="train"', ''), "'a.png' may be 'train/a.png' or 'val/a.png'"),
    'twice': (
        lambda text: text.replace('name="b.png"', 'name="a.png"'),
        'line 16 is of .*train/a.png, as is .* line 9',
    ),
    'entities': (
        lambda text: text.replace('<annotations>', '<!DOCTYPE a [<!ENTITY x "y">]><annotations>'),
        'declares entities',
    ),
}


@pytest.mark.parametrize('what', CVAT_FAULTS)
def test_faulty_exports_of_cvat_are_refused(cvat, tmp_path, convert, what):
    spoil, message = CVAT_FAULTS[what]
    export = write(tmp_path / 'annotations.xml', spoil(CVAT))
    status, output = convert('cvat2coco', export, cvat, tmp_path / 'boxes.json')
    assert status == 1 and re.search(message, output), output
    assert not (tmp_path / 'boxes.json').exists()


def test_cvat_says_what_there_is_and_leaves_out_what_is_missing(cvat, tmp_path, convert):
    export = write(tmp_path / 'annotations.xml', CVAT)
    command = ('cvat2coco', export, cvat, tmp_path / 'out.json')
    status, output = convert(*command, '--subset', 'val')
    assert status == 1 and 'has no boxes or polygons, but nothing. Tags are written as OUT.csv' in output
    status, output = convert(*command, '--subset', 'test')
    assert status == 1 and "has no subset 'test'; its subsets: train, val" in output
    picture(tmp_path / 'others/c.png')
    for more in ((), ('--drop-missing',)):
        status, output = convert('cvat2coco', export, tmp_path / 'others', tmp_path / 'out.json', *more)
        assert status == 1 and re.search('none of the 3 pictures of .*xml is in .*others: a.png, .* Give the', output)
    (cvat / 'train/b.png').unlink()
    assert convert(*command)[0] == 1
    status, output = convert(*command, '--drop-missing')
    assert status == 0 and 'b.png; left out' in output
    assert set(boxes_in(tmp_path / 'out.json', cvat)) == {'train/a.png', 'val/a.png'}


def test_pictures_of_tags_are_read(cvat, tmp_path, convert):
    write(cvat / 'train/b.png', '')
    status, output = convert('cvat2coco', write(tmp_path / 'annotations.xml', CVAT), cvat, tmp_path / 'tags.csv')
    assert status == 1 and 'train/b.png is no picture' in output


def test_cvat_with_boxes_outside_the_images_alone(cvat, tmp_path, convert):
    image = '<image id="2" name="a.png" subset="val" width="40" height="20">'
    box = '<box label="dog" xtl="50" ytl="5" xbr="60" ybr="15"></box>'
    export = write(tmp_path / 'annotations.xml', CVAT.replace(image, image + box))
    status, output = convert('cvat2coco', export, cvat, tmp_path / 'out.json', '--subset', 'val')
    assert status == 0 and '1 of them without labels; 0 boxes' in output and '1 boxes have less than' in output


def test_an_export_of_cvat_in_coco_format_is_read_as_it_is(cvat, tmp_path):
    content = dict(
        licenses=[dict(name='', id=0, url='')],
        info=dict(contributor=''),
        categories=[dict(id=1, name='dog', supercategory=''), dict(id=2, name='cat', supercategory='')],
        images=[dict(id=1, width=40, height=20, file_name='train/a.png', license=0, flickr_url='', date_captured=0)],
        annotations=[
            dict(
                id=1,
                image_id=1,
                category_id=2,
                segmentation=[],
                area=50.0,
                bbox=[10.0, 5.0, 10.0, 5.0],
                iscrowd=0,
                attributes=dict(occluded=False, rotation=0.0),
            )
        ],
    )
    result = write(tmp_path / 'instances_default.json', content)
    assert boxes_in(result, cvat) == {'train/a.png': [('cat', 10, 5, 20, 10)]}
    assert labels_of_boxes(result, cvat) == {'a.png': ['cat']}


# --------------------------------------------------------------------------------------------------------- as commands


def test_a_converter_is_a_command_that_ends_in_one_line(tmp_path):
    picture(tmp_path / 'in/dog/a.png')
    command = ('tools/dataset_converters/folders2csv.py', tmp_path / 'in', tmp_path / 'labels.csv')
    done = run_tool(*command)
    assert done.returncode == 0 and '1 images' in done.stdout, done.stdout
    done = run_tool(*command)
    assert done.returncode == 1 and 'Traceback' not in done.stdout
    assert done.stdout.strip().splitlines()[-1].endswith('exists already; --overwrite replaces it')
