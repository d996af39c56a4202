"""``corrections=``: what somebody decided about labels, on top of any data set's annotation files."""

import logging
import os

import numpy as np
import pytest
import torch

from asl_mmdet.datasets import (
    AnnotationError,
    CocoMultiLabelDataset,
    CSVMultiLabelDataset,
    OpenImagesMultiLabelDataset,
    VOCMultiLabelDataset,
)
from asl_mmdet.datasets.label_index import Ragged
from asl_mmdet.structures import MultiLabelDataSample, dense_targets

TABLE = 'image,labels\na.jpg,dog;tree\nb.jpg,tree\nc.jpg,\nsub/d.jpg,sky\n'


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(
        'asl_mmdet.datasets.multi_label.print_log',
        lambda message, logger=None, level=logging.INFO: lines.append(message),
    )
    return lines


@pytest.fixture
def write(tmp_path):
    def file(rows, header='image,class,decision'):
        (tmp_path / 'corrections.csv').write_text('\n'.join([header, *rows]) + '\n')
        return 'corrections.csv'

    return file


@pytest.fixture
def table(tmp_path, write):
    """A data set of the table above, or of another, with these rows of corrections."""

    def build(rows, text=TABLE, **kwargs):
        (tmp_path / 'table.csv').write_text(text)
        return CSVMultiLabelDataset(
            ann_file='table.csv',
            data_root=str(tmp_path),
            missing_images='unchecked',
            corrections=write(rows),
            **kwargs,
        )

    return build


def targets(dataset):
    """{image: [1, 0 or -1 for each class]}, as the head is given them."""
    result = {}
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        sample = MultiLabelDataSample(
            metainfo={name: info[name] for name in ('img_path', 'num_classes', 'untagged_weight')}
        )
        for name in ('gt_label', 'gt_negative', 'gt_unknown'):
            if name in info:
                setattr(sample, name, torch.from_numpy(info[name]))
        result[info['img_id']] = dense_targets([sample], info['num_classes'])[0][0].int().tolist()
    return result


def test_a_positive_more_a_positive_less_and_an_unknown(table, said):
    dataset = table(['a.jpg,sky,positive', 'a.jpg,tree,negative', 'b.jpg,dog,unknown', './sub//d.jpg,sky,unknown'])
    assert dataset.metainfo['classes'] == ('dog', 'sky', 'tree')
    assert targets(dataset) == {'a.jpg': [1, 1, 0], 'b.jpg': [-1, 0, 1], 'c.jpg': [0, 0, 0], 'sub/d.jpg': [0, -1, 0]}
    summary = (
        'corrections.csv: 4 corrections, 1 labels become positive, 2 labels become unknown, 1 labels become negative'
    )
    assert any(line.endswith(summary) for line in said)
    assert dataset.statistics()['positives'].tolist() == [1, 1, 1]


def test_corrections_that_change_nothing_are_counted(table, said):
    dataset = table(['a.jpg,tree,positive', 'c.jpg,sky,negative', 'c.jpg,dog,positive'])
    assert targets(dataset)['c.jpg'] == [1, 0, 0]
    assert 'gt_negative' not in dataset.data_list.lists
    assert any("2 change nothing, such as class 'tree' of 'a.jpg', which is positive already" in line for line in said)


def test_without_rows_nothing_changes(table):
    assert targets(table([])) == {'a.jpg': [1, 0, 1], 'b.jpg': [0, 0, 1], 'c.jpg': [0, 0, 0], 'sub/d.jpg': [0, 1, 0]}


def test_what_is_known_already_depends_on_what_untagged_means(table, said):
    dataset = table(['c.jpg,dog,negative', 'b.jpg,dog,unknown'], untagged_weight=0.0)
    assert targets(dataset) == {
        'a.jpg': [1, -1, 1], 'b.jpg': [-1, -1, 1], 'c.jpg': [0, -1, -1], 'sub/d.jpg': [-1, 1, -1]
    }  # fmt: skip
    assert any("1 change nothing, such as class 'dog' of 'b.jpg', which is unknown already" in line for line in said)


def test_an_unknown_label_of_the_file_is_decided(table):
    text = 'image,dog,sky,tree\na.jpg,1,-1,0\nb.jpg,-1,-1,1\n'
    dataset = table(['a.jpg,sky,positive', 'b.jpg,dog,negative'], text)
    assert targets(dataset) == {'a.jpg': [1, 1, 0], 'b.jpg': [0, -1, 1]}


def test_one_file_serves_every_part_of_a_split(table):
    rows = ['a.jpg,sky,positive', 'b.jpg,sky,positive', 'c.jpg,sky,positive', 'sub/d.jpg,tree,positive']
    found = {}
    for part in ('train', 'val'):
        found |= targets(table(rows, holdout=dict(fraction=0.65, part=part)))
    assert found == {'a.jpg': [1, 1, 1], 'b.jpg': [0, 1, 1], 'c.jpg': [0, 1, 0], 'sub/d.jpg': [0, 1, 1]}


@pytest.mark.parametrize(
    'rows, message',
    [
        (['x.jpg,dog,positive'], r"corrections.csv, line 2: .*table.csv has no image 'x.jpg' \(did you mean"),
        (['a.jpg,dgo,positive'], r"line 2: .*table.csv has no class 'dgo' \(did you mean 'dog'\?\)"),
        (['a.jpg,dog,yes'], "line 2: decision 'yes' is none of positive, unknown, negative"),
        (
            ['a.jpg,sky,positive', './a.jpg,sky,negative'],
            "line 3: class 'sky' of 'a.jpg' is negative, and positive in line 2. Leave one of the two",
        ),
        (['a.jpg,sky,positive', 'a.jpg,sky,positive'], 'is positive, and positive in line 2'),
        (['a.jpg,sky'], 'line 2: 2 fields'),
        ([',sky,positive'], "line 2: '' is not the name of an image file"),
    ],
)
def test_what_cannot_be_meant_is_refused(table, rows, message):
    with pytest.raises(AnnotationError, match=message):
        table(rows)


def test_other_files_are_refused(table, write, tmp_path):
    table([])
    options = dict(ann_file='table.csv', data_root=str(tmp_path), missing_images='unchecked')
    with pytest.raises(AnnotationError, match='corrections.csv begins with .*, not with image,class,decision'):
        CSVMultiLabelDataset(corrections=write([], 'image,labels,x'), **options)
    with pytest.raises(AnnotationError, match='nowhere.csv does not exist'):
        CSVMultiLabelDataset(corrections='nowhere.csv', **options)


def test_coco(coco, write):
    # 73 has no annotation and is dropped, unless a correction says something of it.
    name = 'COCO_val2014_%012d.jpg'
    dataset = CocoMultiLabelDataset(
        corrections=write([f'{name % 42},dog,negative', f'{name % 73},person,positive', f'{name % 136},dog,negative']),
        **coco['config'],
    )
    assert dataset.metainfo['classes'] == ('person', 'dog', 'toothbrush')
    assert targets(dataset) == {42: [1, 0, 0], 73: [1, 0, 0], 74: [1, 0, 0], 136: [0, 0, 0]}


def test_a_class_of_the_file_that_is_not_chosen_may_be_corrected(coco, write):
    image = coco['names'][0]
    dataset = CocoMultiLabelDataset(
        corrections=write([f'{image},dog,negative', f'{image},toothbrush,positive']),
        metainfo=dict(classes=['toothbrush']),
        **coco['config'],
    )
    assert targets(dataset)[42] == [1]


def test_other_corrections_count_at_once_although_the_labels_are_cached(coco, write):
    """The cache holds what the annotation file says, so that it serves every corrections file."""
    image = coco['names'][0]
    path = coco['root'] / write([f'{image},toothbrush,positive'])
    build = lambda: targets(CocoMultiLabelDataset(corrections='corrections.csv', **coco['config']))[42]  # noqa: E731
    assert build() == [1, 1, 1]
    cache = coco['root'] / 'annotations/instances_val2014.json.labels.npz'
    written, times = cache.stat().st_mtime_ns, path.stat()
    path.write_text(path.read_text().replace('toothbrush,positive', 'person,positive    '))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # not even the time tells
    assert path.stat().st_size == times.st_size
    assert build() == [1, 1, 0]
    assert targets(CocoMultiLabelDataset(**coco['config']))[42] == [1, 1, 0]
    assert cache.stat().st_mtime_ns == written


def test_open_images(tmp_path, write):
    ids = ['000002b66c9c498e', '00000b4dcff7f799']
    (tmp_path / 'classes.csv').write_text('LabelName,DisplayName\n/m/01,Person\n/m/02,Tree\n')
    (tmp_path / 'labels.csv').write_text(
        f'ImageID,Source,LabelName,Confidence\n{ids[0]},verification,/m/01,1\n{ids[0]},verification,/m/02,0\n'
        f'{ids[1]},verification,/m/02,1\n'
    )
    dataset = OpenImagesMultiLabelDataset(
        ann_file='labels.csv',
        class_file='classes.csv',
        data_root=str(tmp_path),
        missing_images='unchecked',
        corrections=write([f'{ids[0]}.jpg,Tree,positive', f'{ids[1]}.jpg,Tree,negative']),
    )
    assert targets(dataset) == {ids[0]: [1, 1], ids[1]: [-1, 0]}


def test_voc(tmp_path, write):
    (tmp_path / 'Annotations').mkdir()
    (tmp_path / 'ImageSets/Main').mkdir(parents=True)
    (tmp_path / 'ImageSets/Main/trainval.txt').write_text('000005\n')
    (tmp_path / 'Annotations/000005.xml').write_text(
        '<annotation><object><name>chair</name><difficult>0</difficult></object></annotation>'
    )
    dataset = VOCMultiLabelDataset(
        data_root=str(tmp_path), missing_images='unchecked', corrections=write(['000005.jpg,dog,positive'])
    )
    names = [dataset.metainfo['classes'][c] for c in dataset.get_data_info(0)['gt_label']]
    assert names == ['chair', 'dog']


def test_edited_lists_equal_edited_sets():
    rng = np.random.default_rng(0)
    for _ in range(20):
        rows, classes = rng.integers(1, 8, 2)
        there = rng.random((rows, classes)) < 0.5
        changed = rng.random((rows, classes)) < 0.3
        labels = Ragged.from_pairs(*np.nonzero(there), rows, classes)
        remove, add = (list(zip(*np.nonzero(changed & part))) for part in (there, ~there))
        rng.shuffle(remove)
        edited = labels.edited(remove, add)
        assert [edited[row].tolist() for row in range(rows)] == [
            np.flatnonzero(line).tolist() for line in there ^ changed
        ]
        assert edited.values.dtype == labels.values.dtype
