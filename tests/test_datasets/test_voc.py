import os

import pytest

from asl_mmdet.datasets import AnnotationError, VOCMultiLabelDataset


def annotation(*objects):
    return (
        '<annotation><folder>VOC2007</folder><filename>x.jpg</filename>'
        + ''.join(
            f'<object><name>{name}</name><pose>Left</pose><truncated>0</truncated><difficult>{difficult}</difficult>'
            '<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object>'
            for name, difficult in objects
        )
        + '</annotation>'
    )


@pytest.fixture
def voc(tmp_path, pictures):
    """000005: two chairs, one of them difficult; 000007: a car, and a difficult person; 000009: a difficult dog."""
    root = tmp_path / 'VOC2007'
    for folder in ('ImageSets/Main', 'Annotations'):
        (root / folder).mkdir(parents=True)
    (root / 'ImageSets/Main/trainval.txt').write_text('000005\n000007\n000009\n')
    (root / 'ImageSets/Main/test.txt').write_text('000007\n')
    for image, objects in (
        ('000005', [('chair', 0), ('chair', 1)]),
        ('000007', [('car', 0), ('person', 1)]),
        ('000009', [('dog', 1)]),
    ):
        (root / f'Annotations/{image}.xml').write_text(annotation(*objects))
    pictures(root / 'JPEGImages', ['000005.jpg', '000007.jpg', '000009.jpg'])
    return root


def lists(dataset):
    names = dataset.metainfo['classes']
    keys = [key for key in ('gt_label', 'gt_unknown') if key in dataset.get_data_info(0)]
    return {
        info['img_id']: tuple([names[column] for column in info[key]] for key in keys)
        for info in map(dataset.get_data_info, range(len(dataset)))
    }


def test_difficult_objects(voc):
    kwargs = dict(data_root=str(voc))
    positive = {'000005': (['chair'],), '000007': (['car', 'person'],), '000009': (['dog'],)}
    unknown = {'000005': (['chair'], []), '000007': (['car'], ['person']), '000009': ([], ['dog'])}
    assert lists(VOCMultiLabelDataset(**kwargs)) == positive
    assert lists(VOCMultiLabelDataset(**kwargs, test_mode=True)) == unknown
    assert lists(VOCMultiLabelDataset(**kwargs, difficult='unknown')) == unknown
    assert lists(VOCMultiLabelDataset(**kwargs, test_mode=True, difficult='positive')) == positive
    assert lists(VOCMultiLabelDataset(**kwargs, difficult='negative')) == {
        '000005': (['chair'],),
        '000007': (['car'],),
        '000009': ([],),
    }
    counts = VOCMultiLabelDataset(**kwargs, test_mode=True).statistics()
    assert counts['unknown'] == 2 and counts['positive_negative_ratio'] == pytest.approx(2 / (60 - 2 - 2))


def test_splits_paths_and_classes(voc):
    dataset = VOCMultiLabelDataset(data_root=str(voc), split='test')
    assert len(dataset) == 1 and dataset.get_data_info(0)['img_path'] == str(voc / 'JPEGImages/000007.jpg')
    assert dataset.get_data_info(0)['gt_label'].tolist() == [6, 14] and len(dataset.metainfo['classes']) == 20
    chosen = VOCMultiLabelDataset('ImageSets/Main/test.txt', data_root=str(voc), metainfo=dict(classes=('dog', 'car')))
    assert lists(chosen) == {'000007': (['car'],)}
    with pytest.raises(AnnotationError, match='val.txt does not exist'):
        VOCMultiLabelDataset(data_root=str(voc), split='val')
    wrong = "000005.xml has an object of class 'chair', which .* all classes, since 'cars' is not VOC's .*mean 'car'"
    with pytest.raises(AnnotationError, match=wrong):
        VOCMultiLabelDataset(data_root=str(voc), metainfo=dict(classes=('dog', 'cars')))
    with pytest.raises(ValueError, match='difficult'):
        VOCMultiLabelDataset(data_root=str(voc), difficult='ignore')


@pytest.mark.parametrize(
    'text, message',
    [
        (annotation(('cat', 0), ('doog', 0)), r"has an object of class 'doog' \(did you mean 'dog'\?\)"),
        (annotation(('dog', 2)), "difficult is '2' for an object 'dog'"),
        ('<annotation><object></object></annotation>', "an object of class ''"),
        ('<annotation><object>', 'is not an XML file'),
        ('', 'is not an XML file'),
        ('\0', 'is not an XML file'),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', 'declares a document type'),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', 'is not an XML file'),
    ],
)
def test_faulty_annotation_files_are_named(voc, text, message):
    (voc / 'Annotations/000007.xml').write_text(text)
    with pytest.raises(AnnotationError, match=f'Annotations/000007.xml.*{message}'):
        VOCMultiLabelDataset(data_root=str(voc))


@pytest.mark.parametrize(
    'text, message',
    [
        ('000005  1\n000007 -1\n', 'trainval.txt, line 1: .000005  1. is not an image id'),
        ('000005\n../../secret\n', 'trainval.txt, line 2: .../../secret. is not an image id'),
        ('000005\n000007\n000005\n', "trainval.txt lists '000005' twice"),
        ('000005\n000006\n', 'trainval.txt, line 2: there is no .*Annotations/000006.xml'),
        ('\n', 'no image is left'),
    ],
)
def test_faulty_image_lists_are_named(voc, text, message):
    (voc / 'ImageSets/Main/trainval.txt').write_text(text)
    with pytest.raises(AnnotationError, match=message):
        VOCMultiLabelDataset(data_root=str(voc))


def test_own_classes_in_this_form(voc):
    (voc / 'ImageSets/Main/trainval.txt').write_text('000005\n')
    (voc / 'Annotations/000005.xml').write_text(annotation(('helmet', 0), ('person', 0)))
    text = (voc / 'Annotations/000005.xml').read_text().replace('x.jpg', 'x.PNG')
    (voc / 'Annotations/000005.xml').write_text(text)
    os.rename(voc / 'JPEGImages/000005.jpg', voc / 'JPEGImages/000005.PNG')
    dataset = VOCMultiLabelDataset(data_root=str(voc), metainfo=dict(classes=('vest', 'helmet', 'person')))
    assert dataset.get_data_info(0)['img_path'].endswith('JPEGImages/000005.PNG')
    assert dataset.metainfo['classes'] == ('vest', 'helmet', 'person')
    assert lists(dataset) == {'000005': (['helmet', 'person'],)}
    with pytest.raises(AnnotationError, match=r"class 'helmet', which is none of VOC's 20. .*metainfo=dict\(classes"):
        VOCMultiLabelDataset(data_root=str(voc))


def test_missing_picture(voc):
    os.remove(voc / 'JPEGImages/000009.jpg')
    with pytest.raises(AnnotationError, match='1 of 3 images .*000009.jpg'):
        VOCMultiLabelDataset(data_root=str(voc))
