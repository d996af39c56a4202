import pytest

from asl_mmdet.datasets import AnnotationError, NUSWideDataset

ROWS = [
    'filepath,label,split_name',
    """images/0001_1.jpg,"['clouds', 'sky']",train""",
    "images/0002_2.jpg,['zebra'],val",
    'images/0003_3.jpg,[],train',
]


@pytest.fixture
def read(tmp_path):

    def build(rows=ROWS, **kwargs):
        (tmp_path / 'nus_wid_data.csv').write_text('\n'.join(rows) + '\n')
        dataset = NUSWideDataset(data_root=str(tmp_path), missing_images='unchecked', **kwargs)
        return {info['img_id']: info['gt_label'].tolist() for info in map(dataset.get_data_info, range(len(dataset)))}

    return build


def test_splits(read):
    assert read() == {'images/0001_1.jpg': [13, 55], 'images/0003_3.jpg': []}
    assert read(split='val') == {'images/0002_2.jpg': [80]}
    assert read(unannotated='drop', expected_images=1) == {'images/0001_1.jpg': [13, 55]}
    assert read(metainfo=dict(classes=('sky', 'dog')), indices=1) == {'images/0001_1.jpg': [0]}


def test_the_81_concepts_in_alphabetical_order():
    classes = NUSWideDataset.METAINFO['classes']
    assert len(set(classes)) == 81 and list(classes) == sorted(classes)


@pytest.mark.parametrize(
    'row, message',
    [
        (
            """images/4.jpg,"['cloud']",train""",
            r"line 5: 'cloud' is none of .* 81 concepts \(did you mean 'clouds'\?\)",
        ),
        ('images/4.jpg,clouds,train', "line 5: 'clouds' is not a list of names"),
        ("""images/4.jpg,"__import__('os').system('touch executed')",train""", 'line 5: .* is not a list of names'),
        ('images/4.jpg,[1],val', r"line 5: '\[1\]' is not a list of names"),
        (f'images/4.jpg,{"[" * 5000},val', 'line 5: .* is not a list of names'),
        ("images/4.jpg,['sky'],train,x", 'line 5: 4 fields'),
        ("images/0001_1.jpg,['sky'],val", "image 'images/0001_1.jpg' stands in lines 2 and 5"),
        (",['sky'],train", 'is not the name of an image file'),
        ("../4.jpg,['sky'],train", 'lies outside the image folder'),
    ],
)
def test_faulty_rows_are_named(read, row, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AnnotationError, match=f'nus_wid_data.csv.*{message}'):
        read([*ROWS, row])
    assert not (tmp_path / 'executed').exists()


def test_other_tables_and_splits_are_refused(read):
    with pytest.raises(AnnotationError, match='not with filepath, label, split_name'):
        read(['image,labels', 'a.jpg,sky'])
    with pytest.raises(AnnotationError, match=r"has no split 'test'; its splits: \['train', 'val'\]"):
        read(split='test')
    with pytest.raises(AnnotationError, match='not with filepath'):
        read([''])
