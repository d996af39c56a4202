"""Pictures as people have them, through the pipelines of classifiers, detectors and the inferencers."""

import struct
import zlib

import cv2
import mmcv
import numpy as np
import pytest
from mmcv.transforms import Compose
from PIL import Image

from asl_mmdet.datasets import AnnotationError, CSVMultiLabelDataset, LoadNamedImage

# A smooth picture without symmetry: blue falls from left to right, green from top to bottom, red is constant.
PICTURE = np.dstack(
    [
        np.tile(np.linspace(250, 10, 40), (24, 1)),
        np.tile(np.linspace(250, 10, 24)[:, None], (1, 40)),
        np.full((24, 40), 100),
    ]
).astype(np.uint8)
GREY = np.tile(np.linspace(250, 10, 40).astype(np.uint8), (24, 1))
LOADERS = dict(detector=LoadNamedImage(), stock=Compose([dict(type='LoadImageFromFile')]))


def rotated(path, orientation):
    """The picture as a camera that was held askew stores it: turned pixels, and a note how to turn them back."""
    stored = {3: cv2.ROTATE_180, 6: cv2.ROTATE_90_COUNTERCLOCKWISE, 8: cv2.ROTATE_90_CLOCKWISE}[orientation]
    image = Image.fromarray(cv2.rotate(PICTURE, stored)[..., ::-1])
    exif = image.getexif()
    exif[0x112] = orientation
    image.save(path, exif=exif, quality=95)


def cmyk(path):
    Image.fromarray(PICTURE[..., ::-1]).convert('CMYK').save(path, quality=95)


def with_alpha(path):
    cv2.imwrite(str(path), np.dstack([PICTURE, GREY]))


# Of each: how it is written, what comes out, and the greatest difference that its compression may make.
WHOLE = {
    'plain.jpg': (lambda path: Image.fromarray(PICTURE[..., ::-1]).save(path, quality=95), PICTURE, 12),
    'progressive.jpg': (
        lambda path: Image.fromarray(PICTURE[..., ::-1]).save(path, quality=95, progressive=True),
        PICTURE,
        12,
    ),
    'is_a_png.jpg': (lambda path: Image.fromarray(PICTURE[..., ::-1]).save(path, 'PNG'), PICTURE, 0),
    'is_a_jpeg.png': (lambda path: Image.fromarray(PICTURE[..., ::-1]).save(path, 'JPEG', quality=95), PICTURE, 12),
    '16_bit.png': (lambda path: cv2.imwrite(str(path), PICTURE.astype(np.uint16) * 257), PICTURE, 0),
    '16_bit_grey.png': (lambda path: cv2.imwrite(str(path), GREY.astype(np.uint16) * 257), GREY, 0),
    'cmyk.jpg': (cmyk, PICTURE, 16),
    'grey.jpg': (lambda path: Image.fromarray(GREY).save(path, quality=95), GREY, 6),
    'alpha.png': (with_alpha, PICTURE, 0),
    'palette.png': (lambda path: Image.fromarray(GREY).convert('P').save(path), GREY, 0),
    'exif_3.jpg': (lambda path: rotated(path, 3), PICTURE, 12),
    'exif_6.jpg': (lambda path: rotated(path, 6), PICTURE, 12),
    'exif_8.jpg': (lambda path: rotated(path, 8), PICTURE, 12),
    'pixel.png': (lambda path: cv2.imwrite(str(path), PICTURE[:1, :1]), PICTURE[:1, :1], 0),
    'pixel.jpg': (lambda path: cv2.imwrite(str(path), PICTURE[:1, :1]), PICTURE[:1, :1], 6),
    'wide.png': (lambda path: cv2.imwrite(str(path), np.tile(PICTURE, (1, 500, 1))), np.tile(PICTURE, (1, 500, 1)), 0),
}


def png(width, height, *, pixels=b'\0' * 100):
    """A PNG whose header tells any size."""

    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(pixels)) + chunk(b'IEND', b'')


def encoded(kind, **options):
    ok, data = cv2.imencode(kind, cv2.resize(PICTURE, (400, 240)))
    return data.tobytes()


BROKEN = {
    'empty.jpg': b'',
    'one_byte.jpg': b'\xff',
    'zeros.jpg': bytes(5000),
    'page.jpg': b'<html>404</html>',
    'claims_100000.png': png(100000, 100000),
    'claims_20000.png': png(20000, 20000),
    'no_pixels.png': png(0, 0),
    **{
        f'{share}{kind}': encoded(kind)[: int(len(encoded(kind)) * share / 100)]
        for kind in ('.jpg', '.png', '.bmp', '.webp', '.tif')
        for share in (1, 10, 50, 90, 99)
    },
}


@pytest.mark.parametrize('name', WHOLE)
def test_odd_pictures_load_as_what_they_show(name, tmp_path):
    write, expected, tolerance = WHOLE[name]
    path = tmp_path / name
    write(path)
    expected = np.dstack([expected] * 3) if expected.ndim == 2 else expected
    # Training of both kinds, and mmcv.imread, which tools/infer.py reads the pictures of detectors with.
    loaded = [loader(dict(img_path=str(path)))['img'] for loader in LOADERS.values()] + [mmcv.imread(str(path))]
    for image in loaded:
        assert image.dtype == np.uint8 and image.shape == expected.shape
        np.testing.assert_allclose(image.astype(int), expected, atol=tolerance)
        np.testing.assert_array_equal(image, loaded[0])


@pytest.mark.parametrize('name', BROKEN)
def test_broken_pictures_end_in_one_line_with_file_and_reason(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(BROKEN[name])
    with pytest.raises(AnnotationError) as of_detector:
        LoadNamedImage()(dict(img_path=str(path)))
    (tmp_path / 'table.csv').write_text(f'image,labels\n{name},dog\n')
    dataset = CSVMultiLabelDataset(
        'table.csv',
        data_root=str(tmp_path),
        pipeline=[LOADERS['stock'].transforms[0]],
        test_mode=True,
    )
    with pytest.raises(AnnotationError) as of_classifier:
        dataset[0]
    for caught in (of_detector, of_classifier):
        message = str(caught.value)
        assert str(path) in message and 'cannot be read: ' in message and len(message.splitlines()) == 1
    assert ('the file is empty' in str(of_detector.value)) == (name == 'empty.jpg')


def test_a_missing_picture_is_named(tmp_path):
    with pytest.raises(AnnotationError, match=r'none\.jpg cannot be read: FileNotFoundError'):
        LoadNamedImage()(dict(img_path=str(tmp_path / 'none.jpg')))
