import json

import pytest
from mmdet.utils import register_all_modules

import asl_mmdet.datasets  # noqa: F401

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(32, 24), keep_ratio=False),
    dict(type='RandomFlip', prob=1.0),
    dict(type='PackMultiLabelInputs'),
]


@pytest.fixture(autouse=True)
def mmdet_scope():
    register_all_modules(init_default_scope=True)


@pytest.fixture
def coco(tmp_path, pictures):
    """A folder as of COCO 2014: ids with gaps, categories out of order, one image without annotations, a crowd."""
    names = [f'COCO_val2014_{i:012d}.jpg' for i in (42, 73, 74, 136)]
    outline = [[0, 0, 5, 0, 5, 5]]
    content = dict(
        info=dict(year=2014),
        licenses=[],
        images=[dict(id=i, file_name=name, height=10, width=20) for i, name in zip((42, 73, 74, 136), names)],
        annotations=[
            dict(id=1, image_id=42, category_id=18, iscrowd=0, bbox=[0, 0, 5, 5], area=25, segmentation=outline),
            dict(id=2, image_id=42, category_id=1, iscrowd=0, bbox=[1, 1, 5, 5], area=25, segmentation=outline),
            dict(id=3, image_id=42, category_id=18, iscrowd=0, bbox=[2, 0, 5, 5], area=25, segmentation=outline),
            dict(
                id=4,
                image_id=74,
                category_id=1,
                iscrowd=1,
                bbox=[0, 0, 5, 5],
                area=25,
                segmentation=dict(counts=[0, 200], size=[10, 20]),
            ),
            dict(id=5, image_id=136, category_id=18, iscrowd=0, bbox=[0, 0, 5, 5], area=25, segmentation=outline),
        ],
        categories=[
            dict(id=18, name='dog', supercategory='animal'),
            dict(id=1, name='person', supercategory='person'),
            dict(id=90, name='toothbrush', supercategory='indoor'),
        ],
    )
    pictures(tmp_path / 'val2014', names)
    (tmp_path / 'annotations').mkdir()
    ann_file = tmp_path / 'annotations/instances_val2014.json'
    ann_file.write_text(json.dumps(content))
    return dict(
        root=tmp_path,
        file=ann_file,
        content=content,
        names=names,
        config=dict(
            ann_file='annotations/instances_val2014.json',
            data_root=str(tmp_path),
            data_prefix=dict(img_path='val2014/'),
            pipeline=PIPELINE,
        ),
    )
