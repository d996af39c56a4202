import cv2
import mmcv
import numpy as np
import pytest
from PIL import Image

from asl_mmdet.datasets import AnnotationError
from asl_mmdet.datasets.conversion import (
    CocoFile,
    PictureFolder,
    picture_size,
    read_classes,
    refuse_to_overwrite,
    write_whole,
)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.bmp', '.webp', '.tif'])
def test_sizes_are_those_that_are_loaded(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f'a{suffix}'
    Image.new('RGB', (40, 20)).save(path, **({} if suffix in ('.bmp', '.tif', '.webp') else dict(exif=exif)))
    height, width = mmcv.imread(str(path)).shape[:2]
    assert picture_size(path) == (width, height)


def test_a_size_is_read_from_the_header_alone(tmp_path):
    path = tmp_path / 'a.png'
    assert cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:1000])
    assert picture_size(path) == (300, 200)


@pytest.mark.parametrize('data, reason', [(b'', 'the file is empty'), (b'<html>', 'cannot identify')])
def test_what_is_no_picture_is_named(tmp_path, data, reason):
    path = tmp_path / 'a.jpg'
    path.write_bytes(data)
    with pytest.raises(AnnotationError, match=f'a.jpg is no picture that can be read: {reason}'):
        picture_size(path)


@pytest.fixture
def folder(tmp_path, pictures):
    pictures(tmp_path, ['a.jpg', 'x/a.jpg', 'x/b.jpg', 'y/z/c.jpg', 'w/c.jpg'])
    pictures(tmp_path, ['.hidden.jpg', 'x/.ipynb_checkpoints/a.jpg'])
    (tmp_path / 'x/notes.txt').touch()
    return PictureFolder(tmp_path)


def test_pictures_are_listed_and_the_rest_counted(folder):
    assert folder.names == ['a.jpg', 'w/c.jpg', 'x/a.jpg', 'x/b.jpg', 'y/z/c.jpg']
    assert folder.other_files() == '3 files that are no pictures: 2 .jpg, 1 .txt'


@pytest.mark.parametrize(
    'path, found',
    [
        ('x/a.jpg', 'x/a.jpg'),
        ('/home/somebody/x/a.jpg', 'x/a.jpg'),
        ('C:\\data\\x\\a.jpg', 'x/a.jpg'),
        ('a.jpg', 'a.jpg'),
        ('elsewhere/a.jpg', 'a.jpg'),
        ('b.jpg', 'x/b.jpg'),
        ('z/c.jpg', 'y/z/c.jpg'),
        ('v/c.jpg', None),
        ('../../etc/b.jpg', None),
        ('../x/b.jpg', 'x/b.jpg'),
        ('none.jpg', None),
        ('', None),
        ('/', None),
    ],
)
def test_a_picture_is_found_by_the_end_of_its_path(folder, path, found):
    assert folder.find(path) == found


def test_a_path_that_fits_two_pictures_is_refused(folder):
    with pytest.raises(AnnotationError, match="'c.jpg' may be 'w/c.jpg' or 'y/z/c.jpg'"):
        folder.find('c.jpg')


def test_boxes_enclose_their_corners_and_are_cut(tmp_path):
    coco = CocoFile(['dog', 'cat'], 'source')
    coco.add_image('a.jpg', (100, 50))
    coco.add_box('cat', [(30, 20), (10, 40), (20, 0)])
    coco.add_box('dog', [(90, 40), (110, 60)])
    coco.add_box('dog', [(-0.2, 0), (100.3, 50)])
    coco.add_box('cat', [(99, 10), (120, 30)])
    assert [entry['bbox'] for entry in coco.annotations] == [
        [10, 0, 20, 40],
        [90, 40, 10, 10],
        [0, 0, 100, 50],
        [99, 10, 1, 20],
    ]
    assert [entry['category_id'] for entry in coco.annotations] == [2, 1, 1, 2]
    assert (coco.clipped, coco.tiny) == (2, 0)


@pytest.mark.parametrize(
    'corners',
    [
        [(10, 10), (10.5, 30)],
        [(10, 10), (30, 10)],
        [(99.2, 10), (120, 30)],
        [(-30, 10), (-10, 30)],
        [(0, 50), (100, 90)],
        [(110, 10), (130, 20), (120, 30)],
    ],
)
def test_boxes_with_nothing_inside_the_image_are_left_out(tmp_path, corners):
    coco = CocoFile(['dog', 'cat'], 'source')
    coco.add_image('a.jpg', (100, 50))
    coco.add_box('dog', corners, polygon=len(corners) > 2)
    coco.add_box('cat', [(10, 10), (30, 30)])
    assert [(entry['id'], entry['category_id']) for entry in coco.annotations] == [(1, 2)]
    assert (coco.clipped, coco.tiny) == (0, 1)
    report = '\n'.join(coco.report(tmp_path / 'a.json', tmp_path))
    assert '1 boxes. ' in report and 'dog 0, cat 1' in report
    assert '1 boxes have less than a pixel in width or height inside their image: left out' in report


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / 'new/a.json'
    write_whole(path, 'öne')
    assert path.read_text(encoding='utf-8') == 'öne' and oct(path.stat().st_mode)[-3:] == '644'
    monkeypatch.setattr('os.replace', lambda *_: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OSError, match='No space left'):
        write_whole(path, 'two')
    assert path.read_text(encoding='utf-8') == 'öne' and list(path.parent.iterdir()) == [path]
    with pytest.raises(AnnotationError, match='a.json exists already; --overwrite'):
        refuse_to_overwrite([path], False)
    refuse_to_overwrite([path], True)


@pytest.mark.parametrize(
    'text, message',
    [('', 'names no class'), ('dog\n\ncat\n', "'' is no name of a class"), ('dog\ndog', "names class 'dog' twice")],
)
def test_faulty_files_of_classes(tmp_path, text, message):
    (tmp_path / 'c.txt').write_text(text)
    with pytest.raises(AnnotationError, match=message):
        CocoFile(read_classes(tmp_path / 'c.txt'), tmp_path / 'c.txt')
