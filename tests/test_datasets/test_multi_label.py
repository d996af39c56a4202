"""What all data sets share: choice of images, checks at start, report, unreadable images."""

import copy
import logging
import os
import pickle

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS
from mmengine.dataset import ClassBalancedDataset
from torch.utils.data import DataLoader

from asl_mmdet.datasets import (
    AnnotationError,
    CocoMultiLabelDataset,
    CSVMultiLabelDataset,
    PackMultiLabelInputs,
)
from asl_mmdet.datasets.label_index import LabelIndex, Ragged, encode_names, message_of, normalize_names
from asl_mmdet.structures import MultiLabelDataSample, dense_targets


def table(folder, names, **kwargs):
    """A CSV of these images, all labelled 'dog', with the images beside it."""
    (folder / 'table.csv').write_text('image,labels\n' + ''.join(f'{name},dog\n' for name in names))
    return CSVMultiLabelDataset(ann_file='table.csv', data_root=str(folder), **kwargs)


@pytest.fixture
def log(monkeypatch):
    lines = []
    monkeypatch.setattr(
        'asl_mmdet.datasets.multi_label.print_log',
        lambda message, logger=None, level=logging.INFO: lines.append((level, message)),
    )
    return lines


# --------------------------------------------------------------------------------------------------------------- arrays


def test_ragged_agrees_with_lists():
    generator = np.random.default_rng(0)
    rows, classes = generator.integers(0, 50, 400), generator.integers(0, 300, 400)
    rows = rows[rows % 7 != 0]
    classes = classes[: len(rows)]
    lists = [sorted(set(classes[rows == row].tolist())) for row in range(50)]
    ragged = Ragged.from_pairs(rows, classes, 50, 300)
    assert [ragged[row].tolist() for row in range(50)] == lists
    assert ragged.values.dtype == np.uint16 and ragged[3].dtype == np.int64
    picked = generator.integers(0, 50, 30)
    assert [ragged.take(picked)[i].tolist() for i in range(30)] == [lists[row] for row in picked]
    mask = generator.random(50) < 0.5
    assert [ragged.take(mask)[i].tolist() for i in range(mask.sum())] == [lists[row] for row in np.flatnonzero(mask)]
    new_of_old = np.where(np.arange(300) % 3 == 0, 99 - np.arange(300) // 3, -1)
    assert [ragged.renumber(new_of_old, 100)[row].tolist() for row in range(50)] == [
        sorted(99 - label // 3 for label in labels if label % 3 == 0) for labels in lists
    ]


@pytest.mark.parametrize(('num_classes', 'dtype'), [(256, np.uint8), (257, np.uint16)])
def test_the_last_class_fits_the_type(num_classes, dtype):
    ragged = Ragged.from_pairs([0, 0], [0, num_classes - 1], 1, num_classes)
    assert ragged[0].tolist() == [0, num_classes - 1] and ragged.values.dtype == dtype


def small_index():
    labels = Ragged(np.array([0, 1, 2]), np.array([1, 0], dtype=np.uint8))
    return LabelIndex(np.array([b'a.jpg', b'b.jpg']), ('x', 'y'), dict(gt_label=labels), ids=np.array([7, 8]))


def test_rows_count_from_both_ends():
    index = small_index()
    assert [index[row]['img_id'] for row in (0, 1, -2, -1)] == [7, 8, 7, 8]
    for row in (2, -3):
        with pytest.raises(IndexError, match=f'image {row} of 2'):
            index[row]


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('names', np.array(['a.jpg', 'b.jpg'])),
        ('ids', np.array([7])),
        ('gt_label.offsets', np.array([0, 2])),
        ('gt_label.offsets', np.array([1, 1, 2])),
        ('gt_label.offsets', np.array([0, 3, 2])),
        ('gt_label.offsets', np.array([0, 1, 1])),
        ('gt_label.values', np.array([1, 2], dtype=np.uint8)),
        ('gt_label.values', np.array([1, -1], dtype=np.int8)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(name, value):
    arrays = small_index().to_arrays()
    assert LabelIndex.from_arrays(arrays)[1] == small_index()[1]
    with pytest.raises(ValueError):
        LabelIndex.from_arrays(arrays | {name: value})


def test_names_outside_the_folder_are_found_and_others_put_in_normal_form():
    outside = ['../f.jpg', 'g/../../h.jpg', '/etc/i.jpg', '..\\j.jpg', 'C:k.jpg', '\\l.jpg']
    inside = ['a.jpg', './b.jpg', 'c//d/./e.jpg', '..l.jpg', 'm..jpg', 'n./o.jpg']
    normal, rows = normalize_names(encode_names(inside + outside))
    assert rows.tolist() == [6, 7, 8, 9, 10, 11]
    assert normal[:6].tolist() == [b'a.jpg', b'b.jpg', b'c/d/e.jpg', b'..l.jpg', b'm..jpg', b'n./o.jpg']


@pytest.mark.parametrize('name', ['', ' ', 'a\0.jpg', '\ud800.jpg', 'x' * 1025])
def test_what_cannot_be_a_file_name_is_refused(name):
    with pytest.raises(AnnotationError, match='is not the name of an image file'):
        encode_names(['a.jpg', name])


def test_of_the_errors_of_a_worker_the_last_is_told():
    text = 'Caught\nasl_mmdet.AnnotationError: a.jpg\n\nThe above\nasl_mmdet.AnnotationError: a.jpg: no picture\n'
    assert message_of(RuntimeError(text)) == 'a.jpg: no picture'
    assert message_of(AnnotationError('a.jpg: no picture')) == 'a.jpg: no picture'


# ---------------------------------------------------------------------------------------------------- choice and checks


def test_report_and_statistics(coco, log):
    dataset = CocoMultiLabelDataset(**coco['config'])
    counts = dataset.statistics()
    # 4 labels on 3 images of 3 classes: 4 positives, 5 negatives.
    assert counts['positives'].tolist() == [2, 2, 0]
    assert (counts['images'], counts['classes'], counts['labels_per_image']) == (3, 3, pytest.approx(4 / 3))
    assert counts['positive_negative_ratio'] == pytest.approx(4 / 5)
    assert counts['classes_without_positives'] == ['toothbrush']
    assert len(log) == 1
    for part in (
        '3 images',
        '4 in ',
        '3 with labels',
        '3 classes',
        '1.33 labels per image',
        'ratio 0.8000',
        '1 classes without positives: toothbrush',
    ):
        assert part in log[0][1]


def test_only_the_main_process_reports(coco, log, monkeypatch):
    monkeypatch.setattr('asl_mmdet.datasets.multi_label.is_main_process', lambda: False)
    CocoMultiLabelDataset(**coco['config'])
    assert log == []


def test_ratio_counts_untagged_classes_as_the_weight_says(coco, log):
    unknown = CocoMultiLabelDataset(**coco['config'], untagged_weight=0)
    assert unknown.statistics()['positive_negative_ratio'] == float('inf')
    assert 'labels per image, untagged classes unknown, positive-negative ratio inf' in log[-1][1]
    assert CocoMultiLabelDataset(**coco['config'], untagged_weight=0.1).statistics()['positive_negative_ratio'] == 4 / 5
    assert 'labels per image, untagged classes negative with weight 0.1, positive-negative' in log[-1][1]


def test_a_detectors_filter_is_refused(coco):
    with pytest.raises(ValueError, match="filter_empty_gt.* is for detectors: unannotated='drop' leaves out"):
        CocoMultiLabelDataset(**coco['config'], filter_cfg=dict(filter_empty_gt=True))


def test_expected_images(coco):
    assert len(CocoMultiLabelDataset(**coco['config'], expected_images=3)) == 3
    with pytest.raises(AnnotationError, match='instances_val2014.json gives 3 images, but expected_images=4'):
        CocoMultiLabelDataset(**coco['config'], expected_images=4)


def test_classes_are_selected_reordered_and_named_when_missing(coco):
    dataset = CocoMultiLabelDataset(**coco['config'], metainfo=dict(classes=('toothbrush', 'dog')))
    assert dataset.metainfo['classes'] == ('toothbrush', 'dog')
    # The image that holds a person only is annotated, and stays as an image without positives.
    assert [dataset.get_data_info(i)['gt_label'].tolist() for i in range(3)] == [[1], [], [1]]
    assert dataset.get_data_info(0)['num_classes'] == 2
    with pytest.raises(AnnotationError, match=r"has no class 'tothbrush' \(did you mean 'toothbrush'\?\)"):
        CocoMultiLabelDataset(**coco['config'], metainfo=dict(classes=('dog', 'tothbrush')))
    (coco['root'] / 'classes.txt').write_text('\ufefftoothbrush\r\n dog\n\n')
    from_file = CocoMultiLabelDataset(**coco['config'], metainfo=dict(classes=str(coco['root'] / 'classes.txt')))
    assert from_file.metainfo['classes'] == ('toothbrush', 'dog')


@pytest.mark.parametrize(
    'classes, message',
    [
        (('dog', 'dog'), "names 'dog' twice"),
        ((), 'classes is empty'),
        (('dog', 3), 'holds 3, which is not a name'),
        (('dog', ['cat']), r"holds \['cat'\], which is not a name"),
        ('no/classes.txt', "there is no file 'no/classes.txt'. Classes are a list of names, or a text file"),
    ],
)
def test_faulty_lists_of_classes(coco, classes, message):
    with pytest.raises(AnnotationError, match=message):
        CocoMultiLabelDataset(**coco['config'], metainfo=dict(classes=classes))


def test_missing_images(coco, log):
    os.remove(coco['root'] / 'val2014' / coco['names'][2])
    with pytest.raises(AnnotationError, match=f'1 of 3 images of .*instances_val2014.json.*{coco["names"][2]}'):
        CocoMultiLabelDataset(**coco['config'])
    dropped = CocoMultiLabelDataset(**coco['config'], missing_images='drop')
    assert [dropped.get_data_info(i)['img_id'] for i in range(2)] == [42, 136] and len(dropped) == 2
    assert any(level == logging.WARNING and coco['names'][2] in message for level, message in log)
    assert len(CocoMultiLabelDataset(**coco['config'], missing_images='unchecked')) == 3
    config = dict(coco['config'], data_prefix=dict(img_path='train2014/'))
    with pytest.raises(AnnotationError, match='3 of 3 images .*there is no folder'):
        CocoMultiLabelDataset(**config)
    with pytest.raises(
        AnnotationError, match='no image is left: 4 in .*, 3 with labels, 0 of them on disk. unannotated, holdout'
    ):
        CocoMultiLabelDataset(**config, missing_images='drop')


@pytest.mark.parametrize('chunk', [1, 2, 3])
def test_more_images_than_are_read_at_once(tmp_path, pictures, monkeypatch, chunk):
    for module in ('label_index', 'multi_label'):
        monkeypatch.setattr(f'asl_mmdet.datasets.{module}.CHUNK', chunk)
    names = ['gone.jpg', 'a.jpg', 'x/b.jpg', './x//c.jpg', 'longer/name.jpg']
    pictures(tmp_path, [name for name in names if name != 'gone.jpg'])
    assert encode_names(names).tolist() == [name.encode() for name in names]
    assert normalize_names(encode_names([*names, '../d.jpg']))[1].tolist() == [5]
    dataset = table(tmp_path, names, missing_images='drop')
    assert [dataset.get_data_info(i)['img_id'] for i in range(len(dataset))] == [
        'a.jpg',
        'x/b.jpg',
        'x/c.jpg',
        'longer/name.jpg',
    ]


def test_missing_annotation_file(coco):
    with pytest.raises(AnnotationError, match='CocoMultiLabelDataset needs ann_file'):
        CocoMultiLabelDataset()
    with pytest.raises(AnnotationError, match='train2014.json does not exist.*data_root='):
        CocoMultiLabelDataset(**dict(coco['config'], ann_file='annotations/train2014.json'))


def test_no_path_outside_the_image_folder(tmp_path, pictures):
    pictures(tmp_path, ['secret.jpg', 'images/a.jpg'])
    for name in ('../secret.jpg', str(tmp_path / 'secret.jpg')):
        with pytest.raises(AnnotationError, match=r"table.csv names '.*secret.jpg', .* outside .*allow_outside=True"):
            table(tmp_path, ['a.jpg', name], data_prefix=dict(img_path='images'))
        dataset = table(tmp_path, ['a.jpg', name], data_prefix=dict(img_path='images'), allow_outside=True)
        assert os.path.samefile(dataset.get_data_info(1)['img_path'], tmp_path / 'secret.jpg')


def test_holdout_follows_the_stated_rule_and_parts_do_not_overlap(tmp_path, pictures):
    names = [f'im{i}.jpg' for i in range(200)]
    kwargs = dict(missing_images='unchecked', metainfo=dict(classes=['dog']))
    parts = {part: table(tmp_path, names, holdout=dict(fraction=0.2, part=part), **kwargs) for part in ('train', 'val')}
    chosen = {
        part: {info['img_id'] for info in map(dataset.get_data_info, range(len(dataset)))}
        for part, dataset in parts.items()
    }
    # crc32('im2.jpg') = 0x158d3adc and crc32('im0.jpg') = 0x6f4d69bc: 0.084 and 0.435 of 2^32.
    assert 'im2.jpg' in chosen['val'] and 'im0.jpg' in chosen['train']
    assert chosen['train'] | chosen['val'] == set(names) and not chosen['train'] & chosen['val']
    assert 25 <= len(chosen['val']) <= 55
    with pytest.raises(ValueError, match='fraction'):
        table(tmp_path, names, holdout=dict(part='train'))


@pytest.mark.parametrize(
    'option',
    [
        dict(unannotated='no'),
        dict(missing_images=False),
        dict(untagged_weight=2),
        dict(untagged_weight='unknown'),
        dict(data_prefix=dict(picture='a')),
        dict(data_prefix='train2014'),
        dict(holdout=dict(fraction=0.1, part='test')),
        dict(holdout=0.1),
    ],
)
def test_misspelt_options(coco, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        CocoMultiLabelDataset(**dict(coco['config'], **option))


# ---------------------------------------------------------------------------------------------------- unreadable images


def spoil(path, how):
    data = path.read_bytes()
    path.write_bytes({'truncated': data[: len(data) // 2], 'empty': b'', 'text': b'<html>404</html>'}[how])


@pytest.mark.parametrize('how', ['truncated', 'empty', 'text'])
def test_unreadable_image_is_logged_with_its_path_and_skipped(coco, log, how):
    dataset = CocoMultiLabelDataset(**coco['config'], max_corrupt_images=1)
    spoil(coco['root'] / 'val2014' / coco['names'][2], how)
    log.clear()
    np.random.seed(0)
    for _ in range(3):
        ids = [dataset[i]['data_samples'].img_id for i in range(3)]
        assert ids[0] == 42 and ids[1] in (42, 136) and ids[2] == 136
    # Seen three times, counted and logged once.
    assert len(log) == 1 and coco['names'][2] in log[0][1] and 'no. 1 of at most 1' in log[0][1]
    assert log[0][0] == logging.ERROR
    spoil(coco['root'] / 'val2014' / coco['names'][0], how)
    with pytest.raises(AnnotationError, match=f'{coco["names"][0]} .*cannot be read.*no. 2, more than max_corrupt_.*1'):
        dataset[0]


def test_bound_counts_over_all_workers_and_epochs(tmp_path, pictures):
    names = [f'{i}.jpg' for i in range(12)]
    pictures(tmp_path, names)
    dataset = table(
        tmp_path,
        names,
        max_corrupt_images=2,
        max_refetch=100,
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackMultiLabelInputs')],
    )
    for name in ('0.jpg', '1.jpg'):
        spoil(tmp_path / name, 'truncated')
    loader = DataLoader(dataset, batch_size=1, num_workers=2, collate_fn=list)
    for _ in range(2):
        assert len(list(loader)) == 12
    assert dataset._corrupt.tolist() == [1, 1] + [0] * 10
    spoil(tmp_path / '2.jpg', 'truncated')
    with pytest.raises(AnnotationError, match='2.jpg .*cannot be read'):
        list(loader)


def test_unreadable_image_ends_an_evaluation(coco):
    dataset = CocoMultiLabelDataset(**coco['config'], test_mode=True)
    spoil(coco['root'] / 'val2014' / coco['names'][2], 'truncated')
    assert dataset[0]['data_samples'].img_id == 42
    with pytest.raises(AnnotationError, match=f'{coco["names"][2]} .*cannot be read'):
        dataset[1]


def test_image_that_disappears_and_loader_that_returns_none_count_as_unreadable(coco, log):
    pipeline = [dict(type='LoadImageFromFile', ignore_empty=True), *coco['config']['pipeline'][1:]]
    dataset = CocoMultiLabelDataset(**dict(coco['config'], pipeline=pipeline), max_corrupt_images=1)
    os.remove(coco['root'] / 'val2014' / coco['names'][2])
    log.clear()
    assert dataset[1]['data_samples'].img_id in (42, 136)
    assert 'LoadImageFromFile returned nothing' in log[0][1]


def test_fault_of_a_later_transform_is_not_blamed_on_the_image(coco):
    def broken(results):
        raise KeyError('gt_bboxes')

    dataset = CocoMultiLabelDataset(**dict(coco['config'], pipeline=[coco['config']['pipeline'][0], broken]))
    with pytest.raises(RuntimeError, match=f"the pipeline fails on .*{coco['names'][0]}: KeyError: 'gt_bboxes'"):
        dataset[0]
    assert dataset._corrupt.sum() == 0


def test_an_image_that_a_later_transform_passes_over_is_not_counted_as_unreadable(coco):
    load = coco['config']['pipeline'][0]
    passed_over = CocoMultiLabelDataset(**dict(coco['config'], pipeline=[load, lambda results: None]))
    assert passed_over.prepare_data(0) is None and passed_over._corrupt.sum() == 0

    def exhausted(results):
        raise MemoryError

    with pytest.raises(MemoryError):
        CocoMultiLabelDataset(**dict(coco['config'], pipeline=[load, exhausted])).prepare_data(0)


# ------------------------------------------------------------------------------------ mmengine's and mmdet's interfaces


def test_built_from_a_config_with_mmdets_transforms(coco):
    dataset = DATASETS.build(dict(type='CocoMultiLabelDataset', **coco['config']))
    item = dataset[0]
    sample = item['data_samples']
    assert item['inputs'].shape == (3, 24, 32) and item['inputs'].dtype == torch.uint8
    assert isinstance(sample, MultiLabelDataSample) and sample.gt_label.tolist() == [0, 1]
    assert sample.gt_label.dtype == torch.int64 and 'gt_unknown' not in sample
    assert sample.metainfo == dict(
        num_classes=3,
        untagged_weight=1.0,
        img_id=42,
        img_path=str(coco['root'] / 'val2014' / coco['names'][0]),
        ori_shape=(10, 20),
        img_shape=(24, 32),
        scale_factor=(1.6, 2.4),
        flip=True,
        flip_direction='horizontal',
    )
    targets, weights = dense_targets([dataset[i]['data_samples'] for i in range(3)], 3)
    assert targets.tolist() == [[1, 1, 0], [1, 0, 0], [0, 1, 0]] and weights is None


def test_subsets_indices_and_copies(coco):
    dataset = CocoMultiLabelDataset(**coco['config'])
    assert [info['img_id'] for info in map(dataset.get_subset(-2).get_data_info, (0, 1))] == [74, 136]
    first, again = dataset.get_subset([1]), dataset.get_subset([2, 0, 2, 1])
    assert first._metainfo is not again._metainfo and first._metainfo == again._metainfo
    assert [again.get_data_info(i)['img_id'] for i in (0, 1, 2)] == [136, 42, 136] and len(again._corrupt) == 4
    assert len(CocoMultiLabelDataset(**coco['config'], indices=2)) == 2
    dataset.get_subset_([1])
    assert len(dataset) == 1 and dataset.get_data_info(-1)['sample_idx'] == 0
    lazy = CocoMultiLabelDataset(**coco['config'], lazy_init=True)
    assert lazy.get_data_info(0)['img_id'] == 42
    assert copy.deepcopy(lazy).get_data_info(2)['gt_label'].tolist() == [1]
    assert pickle.loads(pickle.dumps(lazy.data_list))[1]['img_id'] == 74
    with pytest.raises(IndexError):
        lazy.get_data_info(3)


def test_class_balanced_wrapper(coco):
    balanced = ClassBalancedDataset(CocoMultiLabelDataset(**coco['config']), oversample_thr=0.1)
    assert len(balanced) == 3 and balanced.dataset.get_cat_ids(0) == [0, 1]


def test_pack_keeps_type_and_adds_the_third_axis():
    pack = PackMultiLabelInputs(meta_keys=('img_id', 'absent'))
    packed = pack(dict(img=np.arange(6, dtype=np.float32).reshape(2, 3), img_id=7, gt_unknown=[4], untagged_weight=0.5))
    assert packed['inputs'].tolist() == [[[0, 1, 2], [3, 4, 5]]] and packed['inputs'].dtype == torch.float32
    sample = packed['data_samples']
    assert sample.metainfo == dict(img_id=7, untagged_weight=0.5) and 'gt_label' not in sample
    assert sample.gt_unknown.tolist() == [4] and sample.gt_unknown.dtype == torch.int64
    packed = pack(dict(gt_label=np.array([1], dtype=np.uint8), gt_negative=[]))
    assert set(packed) == {'data_samples'} and packed['data_samples'].gt_label.dtype == torch.int64
    assert packed['data_samples'].gt_negative.dtype == torch.int64
    flipped = pack(dict(img=np.arange(12, dtype=np.uint8).reshape(2, 2, 3)[:, ::-1]))['inputs']
    assert flipped[0].tolist() == [[3, 0], [9, 6]] and flipped.is_contiguous()


def test_workers_do_not_copy_the_index(tmp_path):
    """500,000 images: 10 MB of arrays in the parent; a forked worker that reads a tenth adds next to nothing."""
    count = 500_000
    labels = Ragged(np.arange(count + 1) * 2, np.tile(np.array([0, 1], dtype=np.uint8), count))
    index = LabelIndex(np.char.add(np.arange(count).astype('S7'), b'.jpg'), ('a', 'b'), dict(gt_label=labels))

    def private_memory():
        lines = open('/proc/self/smaps_rollup').read().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith('Private_')) / 1024

    reading, writing = os.pipe()
    if os.fork() == 0:
        before = private_memory()
        total = sum(len(index[row]['gt_label']) for row in range(0, count, 10))
        os.write(writing, f'{private_memory() - before} {total}'.encode())
        os._exit(0)
    grown, total = os.read(reading, 100).split()
    os.wait()
    assert int(total) == 100_000 and float(grown) < 5
