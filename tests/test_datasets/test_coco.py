import json
import multiprocessing
import os
import shutil
import subprocess
import time

import numpy as np
import pytest

from asl_mmdet.datasets import AnnotationError, CocoMultiLabelDataset
from asl_mmdet.datasets import coco as coco_module


def labels(dataset):
    return {info['img_id']: info['gt_label'].tolist() for info in map(dataset.get_data_info, range(len(dataset)))}


def rewrite(coco, **changes):
    coco['file'].write_text(json.dumps(dict(coco['content'], **changes)))


def test_ids_are_numbered_in_order_crowds_count_and_unannotated_images_go(coco):
    dataset = CocoMultiLabelDataset(**coco['config'])
    assert dataset.metainfo['classes'] == ('person', 'dog', 'toothbrush')
    assert labels(dataset) == {42: [0, 1], 74: [0], 136: [1]}
    assert dataset.get_data_info(1)['img_path'] == str(coco['root'] / 'val2014' / coco['names'][2])
    kept = CocoMultiLabelDataset(**coco['config'], unannotated='keep')
    assert labels(kept) == {42: [0, 1], 73: [], 74: [0], 136: [1]}


@pytest.fixture
def parsed(monkeypatch):
    calls, read = [], coco_module.read_coco_json
    monkeypatch.setattr(coco_module, 'read_coco_json', lambda path: calls.append(path) or read(path))
    return calls


def test_second_start_reads_the_cache_and_every_option_works_on_it(coco, parsed):
    first = CocoMultiLabelDataset(**coco['config'])
    assert len(parsed) == 1 and sorted(os.listdir(coco['file'].parent)) == [
        'instances_val2014.json',
        'instances_val2014.json.labels.npz',
    ]
    second = CocoMultiLabelDataset(**coco['config'])
    assert labels(second) == labels(first) and second.metainfo == first.metainfo
    chosen = CocoMultiLabelDataset(**coco['config'], unannotated='keep', metainfo=dict(classes=('dog', 'person')))
    assert labels(chosen) == {42: [0, 1], 73: [], 74: [1], 136: [0]}
    assert len(parsed) == 1


def test_cache_is_rebuilt_when_the_file_changes(coco, parsed):
    CocoMultiLabelDataset(**coco['config'])
    size = coco['file'].stat().st_size
    coco['file'].write_text(coco['file'].read_text().replace('"category_id": 18', '"category_id": 90'))
    assert coco['file'].stat().st_size == size
    assert labels(CocoMultiLabelDataset(**coco['config'])) == {42: [0, 2], 74: [0], 136: [2]}
    assert len(parsed) == 2
    assert labels(CocoMultiLabelDataset(**coco['config'])) == {42: [0, 2], 74: [0], 136: [2]}
    assert len(parsed) == 2


@pytest.mark.parametrize('spoil', ['truncate', 'text', 'pickle', 'out of range', 'empty', 'without labels'])
def test_spoilt_cache_is_rebuilt(coco, parsed, spoil):
    cache = coco['file'].with_name(coco['file'].name + '.labels.npz')
    CocoMultiLabelDataset(**coco['config'])
    data = cache.read_bytes()
    if spoil == 'truncate':
        cache.write_bytes(data[:-100])
    elif spoil == 'text':
        cache.write_text('not an archive')
    elif spoil == 'empty':
        cache.write_bytes(b'')
    else:
        with np.load(cache) as arrays:
            arrays = {name: arrays[name] for name in arrays.files}
        if spoil == 'pickle':
            arrays['names'] = np.array([Bomb(cache.parent / 'executed')] * len(arrays['names']), dtype=object)
        elif spoil == 'without labels':
            del arrays['gt_label.offsets']
        else:
            arrays['gt_label.values'][0] = 200
        np.savez(cache, **arrays)
    assert labels(CocoMultiLabelDataset(**coco['config'])) == {42: [0, 1], 74: [0], 136: [1]}
    assert len(parsed) == 2 and not (cache.parent / 'executed').exists()


class Bomb:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return subprocess.call, (['touch', self.marker],)


def test_the_cache_of_a_read_only_folder_is_read_by_everybody(coco, parsed, monkeypatch):
    CocoMultiLabelDataset(**coco['config'])
    cache = coco['file'].with_name(coco['file'].name + '.labels.npz')
    assert cache.stat().st_mode & 0o777 == 0o644
    monkeypatch.setattr(os, 'access', lambda path, mode: mode != os.W_OK)
    assert labels(CocoMultiLabelDataset(**coco['config'])) == {42: [0, 1], 74: [0], 136: [1]}
    assert len(parsed) == 1


def test_read_only_folder_works_without_cache_and_says_so(coco, parsed, monkeypatch):
    said = []
    monkeypatch.setattr(os, 'access', lambda path, mode: mode != os.W_OK)
    monkeypatch.setattr('asl_mmdet.datasets.index_cache.print_log', lambda message, *args: said.append(message))
    for start in (1, 2):
        assert labels(CocoMultiLabelDataset(**coco['config'])) == {42: [0, 1], 74: [0], 136: [1]}
        assert len(parsed) == start and 'cannot be written' in said[-1]
    assert os.listdir(coco['file'].parent) == ['instances_val2014.json']


def test_full_disk_leaves_no_rubbish(coco, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(np, 'savez', full)
    assert len(CocoMultiLabelDataset(**coco['config'])) == 3
    assert os.listdir(coco['file'].parent) == ['instances_val2014.json']


def test_cache_in_another_folder_or_none(coco, tmp_path, parsed):
    CocoMultiLabelDataset(**coco['config'], cache=False)
    assert os.listdir(coco['file'].parent) == ['instances_val2014.json']
    (tmp_path / 'caches').mkdir()
    for _ in range(2):
        CocoMultiLabelDataset(**coco['config'], cache=str(tmp_path / 'caches'))
    (cache,) = os.listdir(tmp_path / 'caches')
    assert cache.startswith('instances_val2014.json.') and cache.endswith('.labels.npz') and len(parsed) == 2
    # Another split may have a file of the same name, size and time.
    other = tmp_path / 'other/instances_val2014.json'
    other.parent.mkdir()
    shutil.copy2(coco['file'], other)
    for _ in range(2):
        CocoMultiLabelDataset(**dict(coco['config'], ann_file=str(other)), cache=str(tmp_path / 'caches'))
    assert len(os.listdir(tmp_path / 'caches')) == 2 and len(parsed) == 3


def test_a_file_of_another_size_is_parsed_anew(coco, parsed):
    CocoMultiLabelDataset(**coco['config'])
    stamp = coco['file'].stat().st_mtime_ns
    coco['file'].write_bytes(coco['file'].read_bytes() + b'\n')
    os.utime(coco['file'], ns=(stamp, stamp))
    CocoMultiLabelDataset(**coco['config'])
    assert len(parsed) == 2


def test_an_interrupted_start_leaves_no_rubbish(coco, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, 'savez', interrupt)
    with pytest.raises(KeyboardInterrupt):
        CocoMultiLabelDataset(**coco['config'])
    assert os.listdir(coco['file'].parent) == ['instances_val2014.json']


def _start(config, count, together):
    read = coco_module.read_coco_json

    def counted(path):
        with count.get_lock():
            count.value += 1
        time.sleep(0.3)  # long enough for all to find that there is no cache
        return read(path)

    coco_module.read_coco_json = counted
    together.wait()
    assert labels(CocoMultiLabelDataset(**config)) == {42: [0, 1], 74: [0], 136: [1]}


def test_ranks_that_start_together_parse_once(coco):
    context = multiprocessing.get_context('fork')
    count, together = context.Value('i', 0), context.Barrier(4)
    config = dict(coco['config'], pipeline=[])
    ranks = [context.Process(target=_start, args=(config, count, together)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0] * 4 and count.value == 1
    assert sorted(os.listdir(coco['file'].parent)) == ['instances_val2014.json', 'instances_val2014.json.labels.npz']


def changed(entries, **change):
    return [dict(entries[0], **change), *entries[1:]]


@pytest.mark.parametrize(
    'table, change, message',
    [
        ('annotations', dict(category_id=2), 'annotation 1 is of category_id 2, which "categories" does not declare'),
        ('annotations', dict(image_id=5), 'annotation 1 is of image_id 5, which "images" does not declare'),
        ('annotations', dict(image_id=[42]), r'annotation 1 is of image_id \[42\]'),
        ('images', dict(id=73), "in 'images' 1 id occur twice, such as 73"),
        (
            'images',
            dict(file_name='COCO_val2014_000000000073.jpg'),
            "in 'images' 1 file_name occur twice, such as 'COCO",
        ),
        ('images', dict(file_name=None), r'images\[0\] has file_name None'),
        ('images', dict(file_name='../../etc/passwd'), 'names .*passwd.*, which lies outside the image folder'),
        ('images', dict(id=True), r'images\[0\] has id True'),
        ('categories', dict(id='18'), r"categories\[0\] has id '18'"),
        ('categories', dict(name='person'), "in 'categories' 1 name occur twice, such as 'person'"),
        ('categories', dict(id=90), "in 'categories' 1 id occur twice, such as 90"),
    ],
)
def test_faulty_entries_are_named(coco, table, change, message):
    rewrite(coco, **{table: changed(coco['content'][table], **change)})
    with pytest.raises(AnnotationError, match='instances_val2014.json.*' + message):
        CocoMultiLabelDataset(**coco['config'])


@pytest.mark.parametrize(
    'text, message',
    [
        ('{"images": [', 'is not a JSON file'),
        ('', 'is not a JSON file'),
        ('[]', "has no list 'images'"),
        ('{"images": [], "categories": []}', "has no list 'annotations'"),
        ('[' * 100000, 'is not a JSON file'),
        ('{"images": [1], "annotations": [], "categories": []}', "has no list 'images' of objects"),
        ('{"images": [], "annotations": [], "categories": []}', 'no image is left: 0 in'),
    ],
)
def test_other_files_are_refused(coco, text, message):
    coco['file'].write_text(text)
    with pytest.raises(AnnotationError, match=f'instances_val2014.json.*{message}|{message}.*instances_val2014.json'):
        CocoMultiLabelDataset(**coco['config'])


def test_ids_may_be_text(coco):
    images = [dict(image, id=f'x{image["id"]}') for image in coco['content']['images']]
    annotations = [dict(entry, image_id=f'x{entry["image_id"]}') for entry in coco['content']['annotations']]
    rewrite(coco, images=images, annotations=annotations)
    assert labels(CocoMultiLabelDataset(**coco['config'])) == {'x42': [0, 1], 'x74': [0], 'x136': [1]}


def test_id_of_more_than_64_bits(coco):
    rewrite(coco, images=[*coco['content']['images'], dict(id=2**70, file_name='a.jpg')])
    with pytest.raises(AnnotationError, match='instances_val2014.json: an image id needs more than 64 bits'):
        CocoMultiLabelDataset(**coco['config'])
