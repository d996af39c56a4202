import json

import cv2
import numpy as np
from pycocotools.coco import COCO

from tests.conftest import run_tool


def test_the_same_arguments_give_the_same_files(tmp_path):
    folders = [tmp_path / name for name in ('one', 'two', 'other')]
    for folder, seed in zip(folders, (0, 0, 1)):
        command = ['tools/make_shapes.py', folder, '--train', 16, '--val', 6, '--size', 64, '--seed', seed]
        assert run_tool(*command).returncode == 0
    one, two, other = folders
    files = sorted(path.relative_to(one) for path in one.rglob('*') if path.is_file())
    assert len(files) == 24 == len([path for path in two.rglob('*') if path.is_file()])
    assert all((one / file).read_bytes() == (two / file).read_bytes() for file in files)
    assert (other / 'annotations/train.json').read_bytes() != (one / 'annotations/train.json').read_bytes()


def test_annotations_are_coco_and_fit_the_pictures(tmp_path):
    run_tool('tools/make_shapes.py', tmp_path, '--train', 60, '--val', 10, '--size', 96)
    coco = COCO(str(tmp_path / 'annotations/train.json'))
    assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == [
        'circle',
        'ring',
        'square',
        'triangle',
        'star',
        'cross',
    ]
    counts = [len(coco.getAnnIds(image_id)) for image_id in coco.getImgIds()]
    assert min(counts) == 0 and max(counts) >= 4  # empty images and crowded ones
    assert {a['category_id'] for a in coco.anns.values()} == {1, 2, 3, 4, 5, 6}
    for annotation in coco.anns.values():
        x, y, width, height = annotation['bbox']
        assert 0 <= x < x + width <= 96 and 0 <= y < y + height <= 96
        assert 12 <= annotation['area'] <= width * height
    image = cv2.imread(str(tmp_path / 'train' / coco.imgs[1]['file_name']))
    assert image.shape == (96, 96, 3)
    # an annotated square fills its box's centre with one colour, up to the noise of 8 grey levels
    square = max((a for a in coco.anns.values() if a['category_id'] == 3), key=lambda a: a['area'])
    x, y, width, height = (int(v) for v in square['bbox'])
    picture = cv2.imread(str(tmp_path / 'train' / coco.imgs[square['image_id']]['file_name'])).astype(float)
    centre = picture[y + height // 2 - 3 : y + height // 2 + 3, x + width // 2 - 3 : x + width // 2 + 3]
    assert centre.std((0, 1)).max() < 20


def test_missing_labels_and_imbalance(tmp_path):
    def boxes(split, *options):
        out = tmp_path / '_'.join(str(o) for o in options or ['plain'])
        assert (
            run_tool('tools/make_shapes.py', out, '--train', 150, '--val', 20, '--size', 48, *options).returncode == 0
        )
        return json.loads((out / f'annotations/{split}.json').read_text())['annotations']

    plain = boxes('train')
    kept = boxes('train', '--missing-labels', 0.3)
    assert abs(len(kept) / len(plain) - 0.7) < 0.07
    without_ids = [(a['image_id'], a['category_id'], tuple(a['bbox'])) for a in plain]
    assert {(a['image_id'], a['category_id'], tuple(a['bbox'])) for a in kept} <= set(without_ids)
    assert boxes('val', '--missing-labels', 0.3) == boxes('val')
    skewed = np.bincount([a['category_id'] for a in boxes('train', '--imbalance', 20)], minlength=7)[1:]
    assert skewed[0] / max(skewed[-1], 1) > 8
    done = run_tool('tools/make_shapes.py', tmp_path / 'x', '--size', 4)
    assert done.returncode == 2 and '--size: 4 is below 12: some of the shapes would be too small' in done.stdout
    done = run_tool('tools/make_shapes.py', tmp_path / 'x', '--missing-labels', 1.5)
    assert done.returncode == 2 and '--missing-labels: 1.5 does not lie in [0, 1)' in done.stdout
