import json
import os

import pytest

from asl_mmdet.datasets import AnnotationError, HerbariumDataset


@pytest.fixture
def write(tmp_path, pictures):
    images = [
        dict(id=i, file_name=f'images/{i // 100:03d}/{i % 100:02d}/{i}.jpg', height=1000, width=661, license=1)
        for i in (354106, 76014, 2)
    ]
    content = dict(
        images=images,
        info=dict(year=2020),
        licenses=[],
        regions=[dict(id=0, name='x')],
        annotations=[
            dict(id=image['id'], image_id=image['id'], category_id=category, region_id=0)
            for image, category in zip(images, (17, 3, 17))
        ],
        categories=[
            dict(id=17, name='Abies alba', genus='Abies', family='Pinaceae'),
            dict(id=3, name='Citharexylum ca\u00f1arense', genus='Citharexylum', family='Verbenaceae'),
            dict(id=5, name='Abies alba', genus='Abies', family='Pinaceae'),
        ],
    )
    pictures(tmp_path / 'train', [image['file_name'] for image in images])

    def build(encoding='utf-8', **changes):
        (tmp_path / 'train/metadata.json').write_bytes(
            json.dumps(dict(content, **changes), ensure_ascii=False).encode(encoding)
        )
        return HerbariumDataset(data_root=str(tmp_path))

    build.content = content
    return build


def test_one_species_each_in_the_order_of_ids(write, tmp_path):
    dataset = write()
    assert dataset.metainfo['classes'] == ('Citharexylum cañarense', 'Abies alba (5)', 'Abies alba (17)')
    infos = [dataset.get_data_info(i) for i in range(3)]
    assert [info['gt_label'].tolist() for info in infos] == [[2], [0], [2]]
    assert [info['img_id'] for info in infos] == [354106, 76014, 2]
    assert infos[2]['img_path'] == str(tmp_path / 'train/images/000/02/2.jpg')
    assert os.path.exists(tmp_path / 'train/metadata.json.labels.npz')


def test_latin_1_as_in_the_published_file(write):
    assert write('latin-1').metainfo['classes'][0] == 'Citharexylum cañarense'


def test_exactly_one_label(write):
    annotations = write.content['annotations']
    for changed, count in ((annotations[:-1], 0), ([*annotations, dict(annotations[2], category_id=3)], 2)):
        with pytest.raises(AnnotationError, match=f"1 images do not have .*images/000/02/2.jpg' with {count}"):
            write(annotations=changed)
