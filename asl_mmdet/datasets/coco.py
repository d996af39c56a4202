"""MS-COCO 2014 and 2017 as a multi-label set, from the instances JSON that detectors are trained on."""

import json
from collections.abc import Sequence

import numpy as np
from mmdet.registry import DATASETS

from .label_index import AnnotationError, LabelIndex, Ragged, encode_names, first_repeated, quoted
from .multi_label import MultiLabelDataset


@DATASETS.register_module()
class CocoMultiLabelDataset(MultiLabelDataset):
    """Instances JSON of COCO, or of any tool that writes COCO's format (https://cocodataset.org/#format-data).

    A class is positive where it has at least one annotation, crowds included. Classes stand in the order of the
    category ids, which have gaps. Images without any annotation are dropped, so that COCO 2014 has 82,081 images for
    training and 40,137 for validation (section 4.1.1); ``expected_images`` checks such a number. Arguments:
    ``MultiLabelDataset``.
    """

    def __init__(self, ann_file: str = '', unannotated: str = 'drop', **kwargs):
        super().__init__(ann_file, unannotated=unannotated, **kwargs)

    def read_index(self) -> LabelIndex:
        return self.read_through_cache(self._parse, [self.ann_file], format='coco')

    def _parse(self):
        content = read_coco_json(self.ann_file)
        classes, names, ids, rows, columns = coco_arrays(content, self.ann_file)
        labels = Ragged.from_pairs(rows, columns, len(names), len(classes))
        return LabelIndex(names, classes, dict(gt_label=labels), ids)


def read_coco_json(path: str, keys: Sequence[str] | None = None) -> dict:
    """Lists ``images``, ``annotations`` and ``categories``, without the outlines, which are most of COCO's files.

    Args:
        keys: what must be there instead of the three.

    Raises:
        AnnotationError: not JSON, or another format.
    """

    def without_outlines(entry):
        entry.pop('segmentation', None)
        return entry

    with open(path, 'rb') as file:
        data = file.read()
    try:
        try:
            text = data.decode('utf-8-sig')
        except UnicodeDecodeError:
            # FGVC's Herbarium metadata hold names of authors in Latin-1.
            text = data.decode('latin-1')
        del data
        content = json.loads(text, object_hook=without_outlines)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f'{path} is not a JSON file: {error}') from None
    for key in keys or ('images', 'annotations', 'categories'):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            if isinstance(content, dict) and 'data_list' in content:
                raise AnnotationError(
                    f"{path} has mmpretrain's 'data_list' in place of COCO's {key!r}. docs/existing_projects.md turns "
                    'it into a table for CSVMultiLabelDataset'
                )
            raise AnnotationError(
                f"{path} has no list {key!r} of objects, as COCO's instances files have. (The files "
                'of the test images, and captions files, have no labels.)'
            )
    return content


def coco_arrays(content: dict, path: str) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, list[int], list[int]]:
    """``(classes, names, ids, rows, columns)``: annotation i says that image ``rows[i]`` has class ``columns[i]``.

    Raises:
        AnnotationError: an id or name is missing, repeated, of the wrong kind or not declared.
    """
    categories = sorted(
        (_get(entry, 'id', int, 'categories', i, path), _get(entry, 'name', str, 'categories', i, path))
        for i, entry in enumerate(content['categories'])
    )
    classes = tuple(name for _, name in categories)
    column_of_id = {category: column for column, (category, _) in enumerate(categories)}
    row_of_id, row_of_name, names = {}, {}, []
    for i, entry in enumerate(content['images']):
        row_of_id[_get(entry, 'id', (int, str), 'images', i, path)] = i
        names.append(_get(entry, 'file_name', str, 'images', i, path))
        row_of_name[names[-1]] = i
    for table, key, distinct in (
        ('categories', 'id', column_of_id),
        ('categories', 'name', set(classes)),
        ('images', 'id', row_of_id),
        ('images', 'file_name', row_of_name),
    ):
        repeated = len(content[table]) - len(distinct)
        if repeated:
            raise AnnotationError(
                f'{path}: in {table!r} {repeated} {key} occur twice, such as '
                f'{quoted(first_repeated(entry[key] for entry in content[table]))}'
            )
    rows, columns = [], []
    for i, entry in enumerate(content['annotations']):
        image, category = entry.get('image_id'), entry.get('category_id')
        try:
            rows.append(row_of_id[image])
            columns.append(column_of_id[category])
        except (KeyError, TypeError):
            known = len(rows) > len(columns)
            raise AnnotationError(
                f'{path}: annotation {quoted(entry["id"]) if "id" in entry else f"no. {i}"} is of '
                + (
                    f'category_id {quoted(category)}, which "categories" does not declare'
                    if known
                    else f'image_id {quoted(image)}, which "images" does not declare'
                )
            ) from None
    try:
        encoded = encode_names(names)
    except AnnotationError as error:
        raise AnnotationError(f'{path}: {error}') from None
    text = any(isinstance(image, str) for image in row_of_id)
    try:
        ids = np.array([str(image).encode() if text else image for image in row_of_id], dtype='S' if text else np.int64)
    except OverflowError:
        raise AnnotationError(f'{path}: an image id needs more than 64 bits') from None
    return classes, encoded, ids, rows, columns


def _get(entry, key, kind, table, i, path):
    value = entry.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise AnnotationError(
            f'{path}: {table}[{i}] has {key} {quoted(value)}' if key in entry else f'{path}: {table}[{i}] has no {key}'
        )
    return value
