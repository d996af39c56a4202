import numpy as np
import pytest

from asl_mmdet.datasets import AnnotationError, OpenImagesMultiLabelDataset, PackMultiLabelInputs
from asl_mmdet.datasets import open_images as open_images_module
from asl_mmdet.datasets.open_images import LabelTable, read_labels
from asl_mmdet.structures import dense_targets

A, B, C = '000002b66c9c498e', 'ffff02b97e5cdd63', '0a0002c707c9895e'
CLASSES = [
    'LabelName,DisplayName',
    '/m/01g317,Person',
    '/m/0dzct,Human face',
    '/m/07j7r,"Tree, shrub"',
    '/g/11bc5qn1_xyzw,Sky',
    '/m/0k4j,Human face',
]
HUMAN = [
    'ImageID,Source,LabelName,Confidence',
    f'{A},verification,/m/01g317,1',
    f'{A},verification,/m/0dzct,0',
    f'{B},crowdsource-verification,/g/11bc5qn1_xyzw,1',
    f'{A},verification,/m/07j7r,0',
    f'{B},verification,/m/0dzct,0',
]
MACHINE = [
    'ImageID,Source,LabelName,Confidence',
    f'{A},machine,/m/0dzct,0.9',
    f'{A},machine,/m/0k4j,0.7',
    f'{C},machine,/m/01g317,0.5',
    f'{B},machine,/m/01g317,0.3',
    f'{C},machine,/m/0k4j,1.0',
]


@pytest.fixture
def read(tmp_path):

    def build(human=HUMAN, machine=None, classes=CLASSES, end='\n', **kwargs):
        for name, rows in (('human.csv', human), ('machine.csv', machine), ('classes.csv', classes)):
            (tmp_path / name).write_bytes(end.join([*(rows or []), '']).encode())
        options = dict(
            missing_images='unchecked',
            class_file='classes.csv',
            data_root=str(tmp_path),
            machine_file='machine.csv' if machine else None,
        )
        return OpenImagesMultiLabelDataset('human.csv', **{**options, **kwargs})

    return build


def lists(dataset):
    return {
        info['img_id']: (info['gt_label'].tolist(), info['gt_negative'].tolist())
        for info in map(dataset.get_data_info, range(len(dataset)))
    }


def test_verified_labels(read):
    dataset = read()
    # Display names that occur twice get their label behind them.
    names = ('Person', 'Human face (/m/0dzct)', 'Tree, shrub', 'Sky', 'Human face (/m/0k4j)')
    assert dataset.metainfo['classes'] == names
    assert lists(dataset) == {A: ([0], [1, 2]), B: ([3], [1])}
    info = dataset.get_data_info(0)
    assert info['img_path'].endswith(f'/{A}.jpg') and info['img_id'] == A and info['untagged_weight'] == 0
    counts = dataset.statistics()
    assert counts['positive_negative_ratio'] == 2 / 3 and counts['negative'] == 3


@pytest.mark.parametrize('end', ['\r\n', '\n'])
@pytest.mark.parametrize('block', [1, 37, 1 << 23])
def test_blocks_of_any_size_and_line_ends_give_the_same(read, monkeypatch, end, block):
    whole = open_images_module.read_labels
    monkeypatch.setattr(open_images_module, 'read_labels', lambda *args: whole(*args, block=block))
    assert lists(read(end=end)) == {A: ([0], [1, 2]), B: ([3], [1])}
    human = [*HUMAN[:-1], HUMAN[-1] + end + HUMAN[-1]]  # no line end behind the last row
    assert lists(read(human, end=end)) == {A: ([0], [1, 2]), B: ([3], [1])}


def test_machine_labels_count_from_the_threshold_and_people_override_them(read):
    assert lists(read(machine=MACHINE)) == {A: ([0, 4], [1, 2]), C: ([0, 4], []), B: ([3], [1])}
    assert lists(read(machine=MACHINE, machine_threshold=0.3))[B] == ([0, 3], [1])
    assert lists(read(machine=MACHINE, machine_threshold=0.95)) == {A: ([0], [1, 2]), C: ([4], []), B: ([3], [1])}
    # Only a label below the threshold: not an image of the data set, unless asked for.
    machine = [*MACHINE[:1], f'{C},machine,/m/0k4j,0.1']
    assert set(lists(read(machine=machine))) == {A, B}
    assert lists(read(machine=machine, unannotated='keep'))[C] == ([], [])
    # Of two people who disagree the one who saw it counts.
    assert lists(read([*HUMAN, f'{A},verification,/m/0dzct,1', f'{A},verification,/m/01g317,0']))[A] == ([0, 1], [2])


@pytest.mark.parametrize(
    'untagged, weight, targets',
    [('unknown', 0.0, [1, 0, 0, -1, -1]), ('negative', 1.0, [1, 0, 0, 0, 0]), (0.25, 0.25, [1, 0, 0, 0, 0])],
)
def test_untagged_classes(read, untagged, weight, targets):
    dataset = read(untagged=untagged)
    assert dataset.get_data_info(0)['untagged_weight'] == weight
    target, weights = dense_targets([PackMultiLabelInputs()(dataset.get_data_info(0))['data_samples']], 5)
    assert target[0].tolist() == targets
    assert (weights is None) == (weight in (0, 1)) and (weights is None or weights[0].tolist() == [1, 1, 1, 0.25, 0.25])


def test_classes_are_chosen_by_label_or_name(read, tmp_path):
    (tmp_path / 'trainable.txt').write_text('/g/11bc5qn1_xyzw\n/m/01g317\n')
    dataset = read(metainfo=dict(classes=str(tmp_path / 'trainable.txt')))
    assert dataset.metainfo['classes'] == ('Sky', 'Person') and lists(dataset) == {A: ([1], []), B: ([0], [])}
    assert lists(read(metainfo=dict(classes=['Tree, shrub', 'Sky']))) == {A: ([], [0]), B: ([1], [])}
    with pytest.raises(AnnotationError, match="has no class '/m/unknown'"):
        read(metainfo=dict(classes=['/m/unknown']))


def test_a_class_that_is_chosen_by_label_and_by_name(read):
    with pytest.raises(AnnotationError, match="classes names 'Person' and '/m/01g317', which is the same"):
        read(metainfo=dict(classes=('/m/01g317', 'Sky', 'Person')))


def test_second_start_reads_the_cache_until_files_or_threshold_change(read, monkeypatch, tmp_path):
    calls, whole = [], open_images_module.read_labels
    monkeypatch.setattr(open_images_module, 'read_labels', lambda *args: calls.append(args[0]) or whole(*args))
    first = lists(read(machine=MACHINE))
    options = dict(
        class_file='classes.csv', machine_file='machine.csv', data_root=str(tmp_path), missing_images='unchecked'
    )
    assert lists(OpenImagesMultiLabelDataset('human.csv', untagged=0.1, **options)) == first and len(calls) == 2
    assert (
        lists(OpenImagesMultiLabelDataset('human.csv', machine_threshold=0.95, **options)) != first and len(calls) == 4
    )
    assert lists(read(machine=MACHINE[:3])) != first and len(calls) == 6


@pytest.mark.parametrize(
    'row, message',
    [
        (f'{A},verification,/m/none,1', "line 7: .* has label '/m/none', which .*classes.csv does not describe"),
        (f'{A},verification,/g/11bc5qn1_xyzw_and_more,1', 'line 7: .*which .*classes.csv does not describe'),
        (f'{A},verification,,1', 'line 7: .*which .*classes.csv does not describe'),
        (f'{A},verification,/m/01g317', 'line 7: .* does not have four fields'),
        (f'{A},verification,/m/01g317,1,', 'line 7: .* does not have four fields'),
        (f'{A},verification,/m/01g317\n{A},verification,/m/0dzct,1,1', 'line 7: .* does not have four fields'),
        (f'{A},verification,/m/01g317,1\n\n{A},verification,/m/0dzct,1', 'line 8: .. does not have four fields'),
        ('../../etc/secret,verification,/m/01g317,1', 'line 7: .*not begin with an image id of 16 hexadecimal digits'),
        ('000002B66C9C498E,verification,/m/01g317,1', 'line 7: .*not begin with an image id'),
        ('0000,verification,/m/01g317,1', 'line 7: .*not begin with an image id'),
        (f'{A},verification,/m/01g317,0.5', 'line 7: .*neither 0 nor 1. machine_file='),
        (f'{A},verification,/m/01g317,yes', 'line 7: .*neither 0 nor 1'),
        (f'{A},verification,/m/01g317,', 'line 7: .*neither 0 nor 1'),
        (f'{A},verification,/m/01g317,0.000000001', 'line 7: .*neither 0 nor 1'),
    ],
)
@pytest.mark.parametrize('block', [50, 1 << 23])
def test_faulty_rows_are_named(read, monkeypatch, row, message, block):
    whole = open_images_module.read_labels
    monkeypatch.setattr(open_images_module, 'read_labels', lambda *args: whole(*args, block=block))
    with pytest.raises(AnnotationError, match=f'human.csv, {message}'):
        read([*HUMAN, row])


def test_spellings_of_zero_and_one(read):
    assert lists(read([*HUMAN, f'{C},verification,/m/0k4j,1.0', f'{C},verification,/m/0dzct,0.0']))[C] == ([4], [1])


@pytest.mark.parametrize(
    'files, message',
    [
        (dict(machine=[*MACHINE, f'{A},machine,/m/0k4j,1.5']), 'machine.csv, line 7: .*not a number from 0 to 1'),
        (dict(machine=[*MACHINE, f'{A},machine,/m/0k4j,nan']), 'machine.csv, line 7: .*not a number from 0 to 1'),
        (dict(human=[]), 'human.csv does not begin with the line ImageID,Source,LabelName,Confidence'),
        (dict(human=HUMAN[:1]), 'human.csv has no rows of data'),
        (dict(human=['ImageID,Source,LabelName,Confidence,XMin']), 'human.csv does not begin with'),
        (dict(classes=[*CLASSES, 'Person,/m/01g317']), "classes.csv, line 7: 'Person' is not a label"),
        (dict(classes=[*CLASSES, '/m/0k4j,Car']), 'classes.csv: label /m/0k4j stands in lines 6 and 7'),
        (dict(classes=CLASSES[:1]), 'classes.csv describes no class'),
        (dict(class_file='absent.csv'), 'absent.csv does not exist'),
    ],
)
def test_faulty_files_are_named(read, files, message):
    with pytest.raises(AnnotationError, match=message):
        read(**files)


def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path):
    path = tmp_path / 'human.csv'
    path.write_text('\n'.join([*HUMAN[:2], 'x' * 100000]))
    blocks = read_labels(str(path), LabelTable(['/m/01g317'], 'classes.csv'), None, block=1 << 14)
    with pytest.raises(AnnotationError, match='human.csv, line 3 has no end'):
        list(blocks)


@pytest.mark.parametrize('untagged', ['absent', 1.5, -0.5])
def test_misspelt_untagged(read, untagged):
    with pytest.raises(ValueError, match=f"untagged={untagged!r}: give 'unknown', 'negative' or a weight between"):
        read(untagged=untagged)


@pytest.mark.parametrize('chunk', [1, 7, 1 << 20])
def test_agrees_with_a_plain_reader_on_random_files(tmp_path, monkeypatch, chunk):
    for module in ('open_images', 'label_index'):
        monkeypatch.setattr(f'asl_mmdet.datasets.{module}.CHUNK', chunk)
    generator = np.random.default_rng(0)
    labels = [f'/m/{i:04x}' for i in range(300)]
    rows = [
        (f'{generator.integers(0, 40):016x}', int(generator.integers(0, 300)), int(generator.integers(0, 2)))
        for _ in range(3000)
    ]
    path = tmp_path / 'human.csv'
    path.write_text(
        'ImageID,Source,LabelName,Confidence\n'
        + ''.join(f'{image},verification,{labels[label]},{present}\n' for image, label, present in rows)
    )
    expected = {}
    for image, label, present in rows:
        expected.setdefault(image, {})[label] = max(present, expected.get(image, {}).get(label, 0))
    (tmp_path / 'classes.csv').write_text(''.join(f'{label},n{i}\n' for i, label in enumerate(labels)))
    dataset = OpenImagesMultiLabelDataset(
        'human.csv', data_root=str(tmp_path), class_file='classes.csv', missing_images='unchecked'
    )
    assert lists(dataset) == {
        image: tuple(sorted(label for label, present in found.items() if present == wanted) for wanted in (1, 0))
        for image, found in expected.items()
    }
    parts = list(read_labels(str(path), LabelTable(labels, 'classes.csv'), None, block=1000))
    assert len(parts) > 50 and sum(counts.sum() for _, counts, _, _ in parts) == 3000
