"""Annotation files of every format, each broken a little: they load to something whole, or end in one AnnotationError.

The default suite takes a fixed-seed share of the cases, the slow test all of them.
"""

import contextlib
import copy
import faulthandler
import json
import math
import posixpath
import random
import re
import sys
from collections import Counter

import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import ConfigDict

from asl_mmdet.datasets import (
    AnnotationError,
    CocoMultiLabelDataset,
    CSVMultiLabelDataset,
    HerbariumDataset,
    NUSWideDataset,
    OpenImagesMultiLabelDataset,
    VOCMultiLabelDataset,
)
from asl_mmdet.datasets.detection import guard_detection_data

COCO = dict(
    info=dict(year=2014),
    images=[dict(id=i, file_name=f'a/{i:03d}.jpg', height=10, width=20) for i in (42, 73, 74, 136)],
    annotations=[
        dict(
            id=1,
            image_id=42,
            category_id=18,
            iscrowd=0,
            bbox=[0.5, 0, 5, 5],
            area=25,
            segmentation=[[0, 0, 5, 0, 5, 5]],
        ),
        dict(id=2, image_id=42, category_id=1, iscrowd=0, bbox=[1, 1, 5, 5.25], area=25, segmentation=[]),
        dict(
            id=4, image_id=74, category_id=1, iscrowd=1, bbox=[0, 0, 5, 5], area=25, segmentation=dict(counts=[0, 200])
        ),
    ],
    categories=[dict(id=18, name='dog'), dict(id=1, name='person'), dict(id=90, name='tooth brush')],
)
HERBARIUM = dict(
    COCO,
    annotations=[dict(id=i, image_id=i, category_id=c) for i, c in ((42, 18), (73, 1), (74, 1), (136, 90))],
    categories=[dict(id=i, name=name, family='Poa') for i, name in ((18, 'Poa annua'), (1, 'Poa'), (90, 'Poa'))],
)
HUMAN = (
    '000002b66c9c498e,verification,/m/01g317,1\n'
    '000002b66c9c498e,verification,/m/0dzct,0\n'
    '0001eeaf4aed83f9,crowdsource,/m/0cmf2,1\n'
)
MACHINE = '000002b66c9c498e,machine,/m/01g317,0.9\n0001eeaf4aed83f9,machine,/m/0dzct,0.1\n'
HEADER = 'ImageID,Source,LabelName,Confidence\n'
NAMES = 'image,labels\na.jpg,dog;tree\nb/c.jpg,\n"d,e.jpg",sky\n'
COLUMNS = 'image,dog,tree,sky\na.jpg,1,1,0\nb.jpg,0,0,-1\nc.jpg,0,1,1\n'
INDICES = 'image,labels\na.jpg,0 2\nb.jpg,1\nc.jpg,\n'
NUS = (
    'filepath,label,split_name\n'
    "'images/1.jpg',\"['clouds', 'sky']\",train\n"
    'images/2.jpg,"[\'person\']",val\n'
    'images/3.jpg,[],train\n'
)
XML = (
    '<annotation><folder>VOC2007</folder>'
    '<object><name>dog</name><difficult>0</difficult><bndbox><xmin>1</xmin></bndbox></object>'
    '<object><name>person</name><difficult>1</difficult></object></annotation>'
)
OPEN_IMAGES = {
    'labels.csv': HEADER + HUMAN,
    'machine.csv': HEADER + MACHINE,
    'classes.csv': 'LabelName,DisplayName\n/m/01g317,Person\n/m/0dzct,Human face\n/m/0cmf2,Airplane\n',
}
open_images = dict(
    type=OpenImagesMultiLabelDataset, ann_file='labels.csv', machine_file='machine.csv', class_file='classes.csv'
)
VOC = {'ImageSets/Main/trainval.txt': '000005\n000007\n', 'Annotations/000005.xml': XML, 'Annotations/000007.xml': XML}
voc = dict(type=VOCMultiLabelDataset)
named = dict(type=CSVMultiLabelDataset, ann_file='table.csv')
# Of each: the files, which of them is broken, and the data set.
FORMATS = {
    'COCO': ({'coco.json': json.dumps(COCO)}, 'coco.json', dict(type=CocoMultiLabelDataset, ann_file='coco.json')),
    'Herbarium': ({'m.json': json.dumps(HERBARIUM)}, 'm.json', dict(type=HerbariumDataset, ann_file='m.json')),
    'CSV of names': ({'table.csv': NAMES}, 'table.csv', named),
    'CSV of columns': ({'table.csv': COLUMNS}, 'table.csv', named),
    'CSV of indices': ({'table.csv': INDICES}, 'table.csv', dict(named, metainfo=dict(classes=['dog', 'tree', 'sky']))),
    'class list': (
        {'table.csv': NAMES, 'names.txt': 'dog\ntree\nsky\n'},
        'names.txt',
        dict(named, metainfo=dict(classes='names.txt')),
    ),
    'NUS-WIDE': ({'nus.csv': NUS}, 'nus.csv', dict(type=NUSWideDataset, ann_file='nus.csv')),
    'Open Images': (OPEN_IMAGES, 'labels.csv', open_images),
    'Open Images machine': (OPEN_IMAGES, 'machine.csv', open_images),
    'Open Images classes': (OPEN_IMAGES, 'classes.csv', open_images),
    'VOC XML': (VOC, 'Annotations/000007.xml', voc),
    'VOC split': (VOC, 'ImageSets/Main/trainval.txt', voc),
}
DETECTION = dict(COCO, categories=[dict(id=18, name='dog'), dict(id=1, name='person'), dict(id=90, name='tooth brush')])
FORMATS['detection'] = ({'coco.json': json.dumps(DETECTION)}, 'coco.json', 'detection')
TOKEN = re.compile(rb'"[^"\n]*"|[\w./]+|[^\w]')
ODD = [
    b'', b'0', b'-1', b'1', b'1.5', b'NaN', b'-Infinity', b'1e999', b'9' * 25, b'9' * 5000, b'null', b'true', b'""',
    b'[]', b'{}', b'[[1]]',
    b'"../../x.jpg"', b'../x.jpg', b'/etc/passwd', b'C:\\x.jpg', b'\0', b'"\\u0000"', b'"\\ud800"', b'\xff',
    b'\xef\xbb\xbf', b'\xc3\xa9', b'"',
    b"'", b',', b';', b'\n', b'\r', b'\t', b' ', b'<', b'&x;', b'<!ENTITY x "y">', b'<![CDATA[',
    b'dog', b'x' * 70000, b'[' * 5000, b'<a>' * 5000,
    b'{"a":' * 5000, b'\xe2\x80\xa8', b'1_0', b'\xd9\xa3', b'(' * 500,
]  # fmt: skip


def broken(data: bytes, seed: int) -> bytes:
    """One to three changes, of bytes, of what a reader takes for a word, or of values of a JSON file."""
    draw = random.Random(seed)
    if data.startswith(b'{') and draw.random() < 0.6:
        content = json.loads(data)
        for _ in range(draw.choice([1, 1, 2, 3])):
            change_value(content, draw)
        return json.dumps(content).encode()
    for _ in range(draw.choice([1, 1, 2, 3])):
        parts = TOKEN.findall(data) if draw.random() < 0.7 else [data[i : i + 1] for i in range(len(data))]
        if not parts:
            return data
        i, j = sorted(draw.randrange(len(parts)) for _ in range(2))
        how = draw.choice(['replace', 'replace', 'replace', 'insert', 'swap', 'cut', 'delete', 'repeat', 'flip', 'end'])
        if how == 'replace':
            parts[i] = draw.choice(ODD)
        elif how == 'insert':
            parts.insert(i, draw.choice(ODD))
        elif how == 'swap':
            parts[i], parts[j] = parts[j], parts[i]
        elif how == 'cut':
            del parts[i]
        elif how == 'delete':
            del parts[i : j + 1]
        elif how == 'repeat':
            parts[i:i] = parts[i : j + 1]
        elif how == 'flip':
            parts[i] = bytes([parts[i][0] ^ 1 << draw.randrange(8)]) + parts[i][1:]
        else:
            del parts[i:]
        data = b''.join(parts)
    return data


VALUES = [
    None,
    True,
    False,
    0,
    1,
    -1,
    42,
    18,
    2**63,
    10**40,
    0.5,
    42.0,
    math.nan,
    -math.inf,
    '',
    ' ',
    '1',
    'dog',
    'a/042.jpg',
    '../x.jpg',
]
VALUES += [
    '/etc/passwd',
    'a//./073.jpg',
    'a/../074.jpg',
    '\\',
    'x' * 5000,
    '\ud800',
    '\0',
    '\n',
    [],
    {},
    [[]],
    [1, 2, 3],
    [1, 2, 3, None],
    {'a': 1},
]


def change_value(content, draw):
    """Somewhere in a tree of dicts and lists, one entry is replaced, copied, or lost."""
    place = content
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        if not keys:
            return
        key = draw.choice(keys)
        if not isinstance(place[key], (dict, list)) or draw.random() < 0.15:
            break
        place = place[key]
    how = draw.choice(['replace', 'replace', 'replace', 'lose', 'copy'])
    if how == 'replace':
        place[key] = copy.deepcopy(draw.choice(VALUES))
    elif how == 'lose':
        del place[key]
    elif isinstance(place, list):
        place.insert(draw.randrange(len(place) + 1), copy.deepcopy(place[key]))
    else:
        place[draw.choice(keys)] = copy.deepcopy(place[key])


def write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    if files is FORMATS['detection'][0]:
        (root / 'a').mkdir()
        for entry in COCO['images']:
            (root / entry['file_name']).touch()


def load(root, config):
    if config == 'detection':
        return load_detection(root)
    config = dict(config)
    kind = config.pop('type')
    if isinstance(config.get('metainfo', {}).get('classes'), str):
        config['metainfo'] = dict(classes=str(root / config['metainfo']['classes']))
    return kind(data_root=str(root), missing_images='unchecked', cache=False, **config)


def load_detection(root):
    """As tools/train.py does: the check, then mmdet's data set."""
    config = ConfigDict(
        type='CocoDataset', ann_file='coco.json', data_root=str(root), data_prefix=dict(img=''),
        metainfo=dict(classes=('dog', 'person', 'tooth brush')), pipeline=[],
        serialize_data=False, filter_cfg=dict(filter_empty_gt=True),
    )  # fmt: skip
    guard_detection_data(ConfigDict(dataset=config), [dict(type='CocoMetric', ann_file=str(root / 'coco.json'))], False)
    with contextlib.redirect_stdout(None):
        return DATASETS.build(config)


def check_whole(dataset, root):
    """What a data set promises of every image."""
    if isinstance(dataset, CocoDataset):
        infos = [dataset.get_data_info(i) for i in range(len(dataset))]
        boxes = np.array([i['bbox'] for info in infos for i in info['instances']], dtype=np.float32)
        assert len(infos) and np.isfinite(boxes).all() and all(i['img_path'].startswith(f'{root}/a/') for i in infos)
        return
    classes = dataset.metainfo['classes']
    assert len(set(classes)) == len(classes) and all(isinstance(name, str) for name in classes)
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        assert info['img_path'].startswith(str(root)) and '..' not in info['img_path'].split('/')
        for name in ('gt_label', 'gt_negative', 'gt_unknown'):
            labels = info.get(name, np.array([], dtype=np.int64))
            assert labels.dtype == np.int64 and (np.diff(labels) > 0).all()
            assert ((labels >= 0) & (labels < len(classes))).all()
    dataset.statistics()


def labels_by_hand(content):
    """What COCO's format says, without the code under test: names of classes by path, of annotated images."""
    names, images = ({entry['id']: entry[key] for entry in content[table]} for table, key in
                     (('categories', 'name'), ('images', 'file_name')))  # fmt: skip
    labels = {}
    for entry in content['annotations']:
        labels.setdefault(posixpath.normpath(images[entry['image_id']]), set()).add(names[entry['category_id']])
    return labels


def outcome(name, seed, root):
    """'loaded' or 'refused'; anything else is an error of the test."""
    files, file, config = FORMATS[name]
    (root / file).write_bytes(broken(files[file].encode(), seed))
    try:
        dataset = load(root, config)
    except AnnotationError as error:
        message = str(error)
        assert len(message.splitlines()) == 1 and len(message) < 2000, message[:3000]
        assert file.split('/')[-1] in message or file.split('/')[-1] == 'names.txt', message
        return 'refused'
    check_whole(dataset, root)
    if name == 'COCO':
        infos = [dataset.get_data_info(i) for i in range(len(dataset))]
        loaded = {
            info['img_path'].removeprefix(f'{root}/'): {
                dataset.metainfo['classes'][label] for label in info['gt_label']
            }
            for info in infos
        }
        assert loaded == labels_by_hand(json.loads((root / file).read_bytes().decode('utf-8-sig', 'replace')))
    return 'loaded'


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr('asl_mmdet.datasets.multi_label.print_log', lambda *_: None)


def outcomes(root, cases):
    """Counts of outcomes by format; the files are broken in ``cases`` ways for each."""
    counts = {}
    for name, (files, _, config) in FORMATS.items():
        folder = root / name.replace(' ', '_')
        folder.mkdir()
        write(folder, files)
        check_whole(load(folder, config), folder)
        # A hang would end in a traceback here; quoting and searching for similar names are where one could be.
        faulthandler.dump_traceback_later(1200, exit=True, file=sys.__stderr__)
        counts[name] = Counter(outcome(name, seed, folder) for seed in range(cases))
        faulthandler.cancel_dump_traceback_later()
    return counts


def test_broken_files_load_or_are_refused_in_one_line(tmp_path, quiet):
    for name, counts in outcomes(tmp_path, 80).items():
        assert counts['loaded'] and counts['refused'], name


@pytest.mark.slow
def test_thousands_of_broken_files_load_or_are_refused_in_one_line(tmp_path, quiet, capsys):
    counts = outcomes(tmp_path, 2000)
    with capsys.disabled():
        for name, count in counts.items():
            print(
                f'\n{name}: {count.total():,} broken files, {count["refused"]:,} refused, {count["loaded"]:,} loaded',
                end='',
            )
