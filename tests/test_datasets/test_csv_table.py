import logging

import pytest

from asl_mmdet.datasets import AnnotationError, CSVMultiLabelDataset


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Builds a data set from the text of a CSV; returns its classes and {image: labels}, and what it logged."""
    said = []
    monkeypatch.setattr(
        'asl_mmdet.datasets.multi_label.print_log',
        lambda message, logger=None, level=logging.INFO: said.append(message),
    )

    def build(text, classes=None, encoding='utf-8', **kwargs):
        (tmp_path / 'table.csv').write_bytes(text.encode(encoding))
        said.clear()
        dataset = CSVMultiLabelDataset(
            ann_file='table.csv',
            data_root=str(tmp_path),
            missing_images='unchecked',
            metainfo=None if classes is None else dict(classes=classes),
            **kwargs,
        )
        infos = [dataset.get_data_info(i) for i in range(len(dataset))]
        build.negative, build.unknown = (
            {info['img_id']: info[name].tolist() for info in infos if name in info}
            for name in ('gt_negative', 'gt_unknown')
        )
        return dataset.metainfo['classes'], {info['img_id']: info['gt_label'].tolist() for info in infos}

    build.said = said
    return build


# ------------------------------------------------------------------------------------------------------ the three forms


@pytest.mark.parametrize('separator', [';', '|', '\t', ','])
def test_names(read, separator):
    text = f'image,labels\na.jpg,"tree{separator}dog"\nb.jpg,\nc.jpg,"traffic light{separator} dog"\n'
    assert read(text) == (('dog', 'traffic light', 'tree'), {'a.jpg': [0, 2], 'b.jpg': [], 'c.jpg': [0, 1]})
    assert (
        f"read as names separated by {separator!r}, in column 'labels'; images in column 'image'; 3 classes from "
        'the file in alphabetical order'
    ) in read.said[0]


def test_names_in_the_order_of_given_classes(read):
    assert read('image,labels\na.jpg,dog;tree\n', classes=['tree', 'sky', 'dog'])[1] == {'a.jpg': [0, 2]}
    assert read('image,labels\na.jpg,٣;²\n', classes=['²', '٣'])[1] == {'a.jpg': [0, 1]}


def test_indices(read):
    text = 'file_name,label\na.jpg,0  2\nb.jpg,\nc.jpg,02\n'
    assert read(text, classes=['x', 'y', 'z']) == (('x', 'y', 'z'), {'a.jpg': [0, 2], 'b.jpg': [], 'c.jpg': [2]})
    assert "read as indices separated by ' '" in read.said[0]
    assert read('file_name,label\na.jpg,1;3\n', classes=['x', 'y', 'z'], index_base=1)[1] == {'a.jpg': [0, 2]}


def test_columns(read):
    text = 'dog,filename,tree,sky\n1,a.jpg,0,1\n0,b.jpg,0,0\n1.0,c.jpg,-1,0.0\nTrue,d.jpg,False,false\n'
    classes, labels = read(text)
    assert (classes, labels) == (('dog', 'tree', 'sky'), {'a.jpg': [0, 2], 'b.jpg': [], 'c.jpg': [0], 'd.jpg': [0]})
    assert read.unknown == {'a.jpg': [], 'b.jpg': [], 'c.jpg': [1], 'd.jpg': []}
    assert "read as one column per class with 1, 0 and -1; images in column 'filename'" in read.said[0]
    assert read(text, classes=['sky', 'dog'])[1] == {'a.jpg': [0, 1], 'b.jpg': [], 'c.jpg': [1], 'd.jpg': [1]}
    assert read(text, label_column=['sky', 'tree'])[0] == ('sky', 'tree')
    assert read('image,dog,cat\na.jpg,0,0\n') == (('dog', 'cat'), {'a.jpg': []})


def test_one_label_per_image_is_stated(read):
    assert read('image,label\na.jpg,dog\nb.jpg,cat\n')[1] == {'a.jpg': [1], 'b.jpg': [0]}
    assert 'read as names, one per image' in read.said[0]


def test_other_delimiters_headers_and_encodings(read):
    excel = '\ufeffimage;labels\r\na.jpg;dog,tree\r\n\r\nb.jpg;tree\r\n'
    assert read(excel, delimiter=';')[1] == {'a.jpg': [0, 1], 'b.jpg': [1]}
    assert read('a.jpg,dog;tree\nb.jpg,tree\n', header=False)[1] == {'a.jpg': [0, 1], 'b.jpg': [1]}
    assert read('image,labels\nbäume/ä.jpg,Bäume\n') == (('Bäume',), {'bäume/ä.jpg': [0]})
    assert read('image,labels\na,dog\n', image_suffix='.jpg')[1] == {'a.jpg': [0]}
    assert read('Image, Labels \n a.jpg , dog ; tree \n')[1] == {'a.jpg': [0, 1]}
    assert read(' dog , File_Name \n 1 , a.jpg \n', label_form='columns') == (('dog',), {'a.jpg': [0]})


def test_quotes_may_stand_behind_a_space(read):
    text = 'image, labels\na.jpg, "dog;cat"\n "b,c.jpg", cat\n'
    assert read(text) == (('cat', 'dog'), {'a.jpg': [0, 1], 'b,c.jpg': [0]})
    assert read('image labels\na.jpg "dog;cat"\nb.jpg \n', delimiter=' ')[1] == {'a.jpg': [0, 1], 'b.jpg': []}


@pytest.mark.parametrize(('name', 'told'), [('a', True), ('b.jpg', False)])
def test_image_suffix_is_named_where_names_have_no_ending(name, told, tmp_path):
    (tmp_path / 'a.jpg').touch()
    (tmp_path / 'table.csv').write_text(f'image,labels\n{name},dog\n')
    with pytest.raises(AnnotationError, match='1 of 1 images .* do not exist') as caught:
        CSVMultiLabelDataset(ann_file='table.csv', data_root=str(tmp_path))
    assert ("image_suffix='.jpg'" in str(caught.value)) is told


@pytest.mark.parametrize(('name', 'told'), [('x\\a.jpg', True), ('x/b.jpg', False)])
def test_slashes_are_named_where_paths_are_those_of_windows(name, told, tmp_path):
    (tmp_path / 'x').mkdir()
    (tmp_path / 'x/a.jpg').touch()
    (tmp_path / 'table.csv').write_text(f'image,labels\n{name},dog\n')
    with pytest.raises(AnnotationError, match='1 of 1 images .* do not exist') as caught:
        CSVMultiLabelDataset(ann_file='table.csv', data_root=str(tmp_path))
    assert ('write / in their place' in str(caught.value)) is told


def test_one_row_per_label(read):
    text = 'image,labels\nb.jpg,tree\na.jpg,dog\nb.jpg,dog\nc.jpg,\n'
    assert read(text, merge_rows=True) == (('dog', 'tree'), {'b.jpg': [0, 1], 'a.jpg': [0], 'c.jpg': []})
    with pytest.raises(AnnotationError, match=r"table.csv: image 'b.jpg' stands in lines 2 and 4 .*merge_rows=True"):
        read(text)


def test_two_spellings_of_a_path_are_one_image(read):
    text = 'image,labels\n./b.jpg,tree\na.jpg,dog\nb.jpg,dog\n'
    assert read(text, merge_rows=True) == (('dog', 'tree'), {'b.jpg': [0, 1], 'a.jpg': [0]})
    with pytest.raises(AnnotationError, match="image 'b.jpg' stands in lines 2 and 4"):
        read(text)


def test_names_that_look_like_marks(read):
    text = 'image,answer\na.jpg,True\nb.jpg,False\n'
    assert read(text, classes=['False', 'True'])[1] == {'a.jpg': [1], 'b.jpg': [0]}
    assert read(text, label_form='names')[1] == {'a.jpg': [1], 'b.jpg': [0]}
    assert read(text, label_form='columns') == (('answer',), {'a.jpg': [0], 'b.jpg': []})


def test_labels_may_repeat_and_end_in_a_separator(read):
    assert read('image,labels\na.jpg,dog;tree;dog;\n')[1] == {'a.jpg': [0, 1]}


def test_other_labels_are_left_out_on_request(read):
    assert read('image,labels\na.jpg,dog;tree\nb.jpg,tree\n', classes=['dog'], other_labels='ignore')[1] == {
        'a.jpg': [0],
        'b.jpg': [],
    }
    assert read.said[0].endswith("; 1 classes; 2 other labels are left out: 'tree'")
    text = 'image,labels\na.jpg,dog;tree\nb.jpg,tree\nc.jpg,\n'
    columns = 'image,dog,tree\na.jpg,1,1\nb.jpg,0,1\nc.jpg,0,0\n'
    for table, kwargs in ((text, dict(other_labels='ignore')), (columns, {})):
        assert read(table, classes=['dog'], unannotated='drop', **kwargs) == (('dog',), {'a.jpg': [0], 'b.jpg': []})


def test_space_is_decided_by_the_classes(read):
    text = 'image,labels\na.jpg,traffic light\nb.jpg,dog\n'
    assert read(text, classes=['dog', 'traffic light'])[1] == {'a.jpg': [1], 'b.jpg': [0]}
    assert read(text, classes=['dog', 'light', 'traffic'])[1] == {'a.jpg': [1, 2], 'b.jpg': [0]}
    assert read(text, label_separator=' ')[0] == ('dog', 'light', 'traffic')
    assert read(text, label_separator=';')[0] == ('dog', 'traffic light')


# -------------------------------------------------------------------------------------------------- what is not guessed


@pytest.mark.parametrize(
    'text, classes, way_out',
    [
        ('image,labels\na.jpg,traffic light\n', None, "label_separator=' ' for the one, label_separator=';'"),
        ('image,labels\na.jpg,traffic light\nb.jpg,1 2\n', None, "line 2: is the space .* label_separator=' ' for"),
        (
            'image,labels\na.jpg,traffic light\n',
            ['traffic', 'light', 'traffic light'],
            "label_separator=' ' for the one",
        ),
        ('image,labels\na.jpg,dog;tree\nb.jpg,dog|tree\n', None, "';' .line 2. and '|' .line 3..*label_separator="),
        ('image,labels\na.jpg,3;5\n', None, r"such as '3'. Decide with metainfo=dict\(classes=.*label_form='names'"),
        ('image,labels\na.jpg,3;5\n', ['3', '4', '5', '6', '7', '8'], "label_form='names' or 'indices'"),
        ('image,labels\na.jpg,1\nb.jpg,0\n', ['cat', 'dog'], "label_form='columns' .*label_form='indices'"),
        ('image,labels\na.jpg,0 1 0\nb.jpg,0 0 0\n', ['cat', 'dog', 'tree'], 'a column for each class if each cell'),
        ('image,labels\na.jpg,0 1\nb.jpg,0 0\n', ['cat', 'dog'], 'a column for each class if each cell'),
        ('image,labels\na.jpg,0 1 0\nb.jpg,1\n', ['cat', 'dog', 'tree'], 'a column for each class if each cell'),
        ('image,dog\na.jpg,1\nb.jpg,-1\n', None, "the only label column holds '-1', '1'. .*label_form='columns' if"),
        ('image,dog\na.jpg,1.0\nb.jpg,0.0\n', ['dog'], "label_form='columns' if .*label_form='names'"),
        ('image,dog\na.jpg,True\nb.jpg,False\n', None, "label_form='columns' if .*label_form='names'"),
        (
            'image,split,labels\na.jpg,1,dog\n',
            None,
            "columns of other contents stands 'labels'. Decide with label_column=",
        ),
        ('image,width,height\na.jpg,640,480\n', None, "column 'width' begins with '640'"),
        (
            'image,labels,train\na.jpg,1,0\n',
            None,
            "columns of other contents stands 'labels'. Decide with label_column=",
        ),
        ('image,Tags,train\na.jpg,1,0\n', None, "columns of other contents stands 'Tags'"),
        ('a.jpg,dog\nb.jpg,dog\n', None, "line 1 names a picture, 'a.jpg'.*header=False"),
        ('IMG_1.JPG,dog\nIMG_2.JPG,dog\n', None, "line 1 names a picture, 'IMG_1.JPG'.*header=False"),
        ('picture,labels\na.jpg,dog\n', None, 'no column of .* is called image, .*image_column='),
        ('image,filename,labels\na.jpg,b.jpg,dog\n', None, 'more than one column .*image_column='),
        ('image\na.jpg\n', None, "one column only, 'image'. Decide with delimiter="),
        ('image;labels\na.jpg;dog,cat\n', None, "line 1 holds ';', but no ','. Decide with delimiter=';'"),
        ('image\tlabels\na.jpg\tdog;cat\n', None, r"line 1 holds '\\t', but no ','. Decide with delimiter='\\t'"),
        ("image,labels\na.jpg,\"['dog', 'tree']\"\n", None, 'line 2: .*looks like a Python list'),
        ('image,dog,dog\na.jpg,1,0\n', None, 'names a column twice'),
        (',image,dog,cat\n0,a.jpg,1,0\n', None, r"'' is what pandas calls .*index=False.*or label_column="),
        ('Unnamed: 0,image,labels\n0,a.jpg,dog\n', None, r"'Unnamed: 0' is what pandas calls .*index=False"),
        (
            'image,labels\na.jpg,dog\nb.jpg,nan\n',
            None,
            "line 3 holds 'nan' among names.*an empty cell.*label_form='names'",
        ),
        ('image,labels\na.jpg,dog\nb.jpg,-1\n', None, "line 3 holds '-1' among names"),
        ('image,labels\na.jpg,7.0\nb.jpg,\n', ['dog', 'cat'], r"line 2 holds '7\.0', as pandas .*astype\('Int64'\)"),
    ],
)
def test_ambiguous_tables_are_refused_with_the_options_that_decide(read, text, classes, way_out):
    with pytest.raises(AnnotationError, match=f'table.csv: .*{way_out}'):
        read(text, classes=classes)


def test_json_is_no_table(read):
    for text in ('[{"image": "a.jpg", "labels": ["dog"]}]', '{"images": [], "annotations": []}'):
        with pytest.raises(AnnotationError, match='table.csv looks like JSON; here a CSV is wanted. CocoMultiLabelDat'):
            read(text)


def test_options_decide(read):
    assert read('image,labels\na.jpg,3;5\n', label_form='names') == (('3', '5'), {'a.jpg': [0, 1]})
    numbers = ['3', '4', '5', '6', '7', '8']
    assert read('image,labels\na.jpg,3;5\n', numbers, label_form='names')[1] == {'a.jpg': [0, 2]}
    assert read('image,labels\na.jpg,3;5\n', numbers, label_form='indices')[1] == {'a.jpg': [3, 5]}
    both = read('image,labels\na.jpg,1;0\nb.jpg,1\n', ['0', '1'])[1]
    assert both == {'a.jpg': [0, 1], 'b.jpg': [1]}  # both readings agree
    assert read('image,dog\na.jpg,1\nb.jpg,0\n', label_form='columns') == (('dog',), {'a.jpg': [0], 'b.jpg': []})
    assert read('image,split,labels\na.jpg,1,dog\n', label_column='labels')[1] == {'a.jpg': [0]}
    assert read('image,split,labels\na.jpg,1,dog\n', label_column=2)[1] == {'a.jpg': [0]}
    assert read('picture,labels\na.jpg,dog\n', image_column='picture')[1] == {'a.jpg': [0]}
    assert read('image,labels\na.jpg,dog\nb.jpg,nan\n', label_form='names')[0] == ('dog', 'nan')
    for meaning, unknown in (('unknown', {'a.jpg': [1]}), ('negative', {})):
        assert read('image,dog,cat\na.jpg,1,\n', empty_cell=meaning)[1] == {'a.jpg': [0]} and read.unknown == unknown


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    'text, kwargs, message',
    [
        ('image,labels\na.jpg,dog\nb.jpg,dog,tree\n', {}, r"line 3: 3 fields 'b.jpg', 'dog', 'tree', but line 1 has 2"),
        ('image,labels\na.jpg,dog\nb.jpg\n', {}, 'line 3: 1 fields'),
        ('image,labels\na.jpg,"dog\nb.jpg,dog\n', {}, 'the row that begins in line 2: unexpected end of data'),
        ('image,labels\na.jpg,"do"g"\n', {}, 'the row that begins in line 2'),
        ('image,labels\na.jpg,dog\n,dog\n', {}, "line 3: '' is not the name of an image file"),
        ('image,labels\na.jpg,dog;;tree\n', {}, "line 2: 'dog;;tree' has an empty label"),
        (
            'image,labels\na.jpg,dog;tree\nb.jpg,Dog\n',
            dict(classes=['dog', 'tree']),
            r"line 3: 'Dog' is none of the 2 classes \(did you mean 'dog'\?\)",
        ),
        (
            'image,labels\na.jpg,dog tree\n',
            dict(classes=['dog', 'tree'], label_separator=';'),
            "line 2: 'dog tree' is .* leaves such labels out$",
        ),
        (
            'image,labels\na.jpg,dog/tree\n',
            dict(classes=['dog', 'tree']),
            r"line 2: 'dog/tree' is .* labels out\. Each cell is read as one label: label_separator=\.\.\. splits it$",
        ),
        ('image,labels\na.jpg,0\nb.jpg,2\n', dict(classes=['x', 'y']), r'line 3: index 2 .*\[0, 1\]. index_base=1'),
        ('image,labels\na.jpg,0;2\n', dict(classes=['x', 'y'], index_base=1), r'line 2: index 0 lies outside \[1, 2\]'),
        (
            'image,labels\na.jpg,0;01\nb.jpg,' + '9' * 5000 + '\n',
            dict(classes=['x', 'y']),
            r'line 3: index 9{80} lies outside',
        ),
        (
            'image,labels\na.jpg,-1;1\n',
            dict(classes=['x', 'y'], label_form='indices'),
            r'line 2: index -1 lies outside',
        ),
        ('image,dog,cat\na.jpg,1,0\nb.jpg,1,2\n', {}, "line 3, column 'cat': '2' is not 1, 0 or -1"),
        (
            'image,dog,cat\na.jpg,1,0\nb.jpg,1,\n',
            {},
            "line 3, column 'cat': '' is not 1, 0 or -1. empty_cell='negative'",
        ),
        (
            'image,labels\na.jpg,dog\n',
            dict(label_column='tags'),
            "has no column 'tags'; its columns: 'image', 'labels'",
        ),
        ('image,labels\na.jpg,dog\n', dict(classes=['dog'], label_column=2), 'has no column 2'),
        ('image,labels\na.jpg,dog\n', dict(image_column=-1), 'has no column -1'),
        (
            'image,dog,cat\na.jpg,NaN,0\n',
            {},
            "column 'dog' begins with 'NaN', which is not 1, 0 or -1. -1 stands for unk",
        ),
        (
            'image,dog,cat\na.jpg,1,0\nb.jpg,1,?\n',
            {},
            "line 3, column 'cat': '[?]' is not 1, 0 or -1. -1 stands for unk",
        ),
        (
            'image,dog,cat\na.jpg,1,0\n',
            dict(label_column=['dog', 'dog']),
            "label_column='dog', 'dog' names a column twice",
        ),
        ('image,dog,cat\na.jpg,1,0\n', dict(classes=['dog', 'sky']), "no class 'sky'.*Leave it out.*a column of -1"),
        ('a.jpg,1,0\n', dict(classes=['dog'], header=False), '2 class columns, but .* has 1 names: .*or add a header'),
        ('image,labels\n', {}, 'has no rows of data'),
        ('', {}, 'has no rows of data'),
        ('a.jpg\nb.jpg\n', dict(header=False), 'there is no column besides the image. Decide with delimiter='),
        (
            'image,dog,cat\na.jpg,1,0\n',
            dict(label_form='names'),
            "2 columns besides the image, 'dog', 'cat'. Decide with label_column=",
        ),
        (
            'image,dog,cat\na.jpg,1,0\na.jpg,0,1\n',
            dict(merge_rows=True),
            'merge_rows=True is for tables with one column of labels. Decide with unique image names',
        ),
        (
            'image,labels\na.jpg,0\n',
            dict(label_form='indices'),
            'indices alone do not tell how many classes there are. Decide with metainfo=',
        ),
        (
            'image,labels\na.jpg,\nb.jpg,\n',
            {},
            'no image has a label, which leaves no class. Decide with metainfo=',
        ),
    ],
)
def test_broken_lines_are_named(read, text, kwargs, message):
    with pytest.raises(AnnotationError, match=f'table.csv.*{message}') as caught:
        read(text, **kwargs)
    assert str(caught.value).count('table.csv') == 1


def test_file_that_is_not_utf8(read):
    rows = ''.join(f'{i}.jpg,Baum\n' for i in range(2000))
    with pytest.raises(AnnotationError, match='table.csv, line 2002: not text in UTF-8; save it as such'):
        read(f'image,labels\n{rows}a.jpg,Bäume\n', encoding='latin-1')


def test_classes_of_a_table_without_header(read):
    text = 'a.jpg,1,0\nb.jpg,0,-1\n'
    assert read(text, ['sky', 'dog'], header=False) == (('sky', 'dog'), {'a.jpg': [0], 'b.jpg': []})
    assert read.unknown == {'a.jpg': [], 'b.jpg': [1]}
    assert read(text, header=False)[0] == ('1', '2') == read(text, ['1', '2'], header=False)[0]
    assert read(text, ['2'], header=False)[1] == {'a.jpg': [], 'b.jpg': []}


def test_a_zero_is_a_verified_negative_where_others_are_untagged(read):
    text = 'image,dog,cat,sky\na.jpg,1,0,\nb.jpg,0,-1,0\n'
    for weight in (0, 0.5):
        assert read(text, empty_cell='negative', untagged_weight=weight)[1] == {'a.jpg': [0], 'b.jpg': []}
        assert read.negative == {'a.jpg': [1], 'b.jpg': [0, 2]} and read.unknown == {'a.jpg': [], 'b.jpg': [1]}
    read(text, empty_cell='unknown', untagged_weight=0.5)
    assert read.negative == {'a.jpg': [1], 'b.jpg': [0, 2]} and read.unknown == {'a.jpg': [2], 'b.jpg': [1]}
    read(text, empty_cell='negative')
    assert read.negative == {} and read.unknown == {'a.jpg': [], 'b.jpg': [1]}


def test_misspelt_options(read):
    for option in (
        dict(label_form='name'),
        dict(index_base=2),
        dict(empty_cell=0),
        dict(other_labels='drop'),
        dict(label_separator=''),
    ):
        with pytest.raises(ValueError, match=next(iter(option))):
            read('image,labels\na.jpg,dog\n', **option)
