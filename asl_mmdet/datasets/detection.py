"""Faults in the data of mmdet's detectors, found before the first step and told in one line."""

import contextlib
import logging
import math
import os.path as osp
from collections.abc import Iterator, Sequence

from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS, TRANSFORMS
from mmengine.config import ConfigDict
from mmengine.dataset import Compose
from mmengine.fileio import list_from_file
from mmengine.logging import print_log

from .coco import coco_arrays, read_coco_json
from .label_index import AnnotationError, normalize_names, quoted, suggestion
from .multi_label import MultiLabelDataset, missing_files, why_unreadable


@contextlib.contextmanager
def named_picture(path: str, fault: str) -> Iterator[None]:
    """Errors within become an ``AnnotationError``, in one line with the picture's path, the fault and the reason."""
    try:
        yield
    except (AnnotationError, MemoryError):
        raise
    except Exception as error:
        raise AnnotationError(f'{path} {fault}: {why_unreadable(path, error)}') from error


class NamedPipeline(Compose):
    """A data set's pipeline, with errors that name the picture.

    Raises:
        AnnotationError: a transform fails.
    """

    def __call__(self, data: dict) -> dict | None:
        with named_picture(data.get('img_path') or 'a picture', 'cannot be prepared'):
            return super().__call__(data)


@TRANSFORMS.register_module()
class LoadNamedImage(LoadImageFromFile):
    """``LoadImageFromFile``, with an error that names the file.

    Raises:
        AnnotationError: the file cannot be read.
    """

    def transform(self, results: dict) -> dict | None:
        with named_picture(results['img_path'], 'cannot be read'):
            return super().transform(results)


def guard_detection_data(dataloader: ConfigDict, evaluators: Sequence[ConfigDict], allow_outside: bool) -> None:
    """Checks the annotation files of a dataloader's data sets in COCO's format, and of their evaluators; changes their
    ``LoadImageFromFile`` into ``LoadNamedImage``. Data sets of other kinds are left alone.

    Raises:
        AnnotationError: see ``check_coco_detection``, a file is missing, or an evaluator's has other images.
    """
    checked, images, classes = [], {}, ()
    for dataset in leaf_configs(dataloader.dataset):
        kind = DATASETS.get(dataset.type) if isinstance(dataset.type, str) else dataset.type
        if kind is None or issubclass(kind, MultiLabelDataset):
            continue
        for transform in dataset.get('pipeline', []):
            if transform.get('type') in ('LoadImageFromFile', 'mmcv.LoadImageFromFile'):
                transform['type'] = 'mmdet.LoadNamedImage'
        if getattr(kind, 'load_data_list', None) is not CocoDataset.load_data_list:
            continue
        root = dataset.get('data_root') or ''
        path = osp.join(root, dataset.ann_file)
        folder = osp.join(root, dataset.get('data_prefix', {}).get('img', ''))
        if '://' in path:
            continue
        classes = dict(kind.METAINFO, **(dataset.get('metainfo') or {})).get('classes', ())
        if isinstance(classes, str) and osp.isfile(classes):
            classes = list_from_file(classes)
        must_have_boxes = not dataset.get('test_mode') and (dataset.get('filter_cfg') or {}).get('filter_empty_gt')
        images |= check_coco_detection(
            path, folder, classes, dataset.get('test_mode', False), must_have_boxes, allow_outside
        )
        checked.append(osp.realpath(path))
    for evaluator in evaluators:
        path = evaluator.get('ann_file')
        reads_coco = type_name(evaluator) in ('CocoMetric', 'CocoReportMetric')
        if path and reads_coco and osp.realpath(path) not in checked and '://' not in path:
            content = _coco_content(path, may_lack_annotations=False)
            coco_arrays(content, path)
            _check_classes(content, path, classes)
            _check_entries(content, path, is_ground_truth=True)
            if checked and _images(content) != images:
                raise AnnotationError(
                    f'the evaluator reads {path}, whose images are not those of the data set in {", ".join(checked)}: '
                    'give the evaluator the ann_file of the data set'
                )


def check_coco_detection(
    path: str,
    folder: str,
    classes: Sequence[str],
    test_mode: bool = False,
    must_have_boxes: bool = False,
    allow_outside: bool = False,
) -> dict[int | str, str]:
    """What mmdet's ``CocoDataset`` and pycocotools need; they pass over its lack in silence, or end in a traceback.

    Args:
        folder: of the images.
        classes: names, in the order of the model's outputs.
        test_mode: the file is what pycocotools compares with, or has no annotations.

    Returns:
        the images' names, without folders, by their ids.

    Raises:
        AnnotationError: the file is not in COCO's format, a box is not four finite numbers, a class is missing or in
            another order, or an image lies outside ``folder`` or does not exist.
    """
    content = _coco_content(path, may_lack_annotations=test_mode)
    names = coco_arrays(content, path)[1]
    _check_classes(content, path, classes)
    _check_entries(content, path, is_ground_truth=test_mode)
    chosen = {entry['id'] for entry in content['categories'] if entry['name'] in set(classes)}
    if not len(names) or must_have_boxes and not any(a['category_id'] in chosen for a in content['annotations']):
        raise AnnotationError(f'{path} has no image' + (' with a box of the chosen classes' if len(names) else ''))
    names, outside = normalize_names(names)
    if len(outside) and not allow_outside:
        raise AnnotationError(
            f'{path} names {quoted(names[outside[0]].decode())}, which lies outside the image folder {folder!r}; '
            f'allow_outside=True in the config permits that for a file you trust ({len(outside):,} such images)'
        )
    if '://' not in folder:
        missing = names[missing_files(folder, names)]
        if len(missing):
            raise AnnotationError(
                f'{len(missing):,} of {len(names):,} images of {path} do not exist, such as '
                f'{osp.join(folder, missing[0].decode())}. Correct data_root or data_prefix'
            )
    return _images(content)


def _images(content):
    return {entry['id']: osp.basename(entry['file_name']) for entry in content['images']}


def _coco_content(path, may_lack_annotations):
    if not osp.isfile(path):
        raise AnnotationError(f'there is no annotation file {path}: correct data_root and ann_file')
    content = read_coco_json(path, ('images', 'categories') if may_lack_annotations else None)
    content.setdefault('annotations', [])
    return content


def _check_classes(content, path, classes):
    known = [entry['name'] for entry in content['categories']]
    absent = [name for name in classes if name not in known]
    if absent:
        raise AnnotationError(
            f'{path} has no class {quoted(absent[0])}{suggestion(absent[0], known)} ({len(absent)} of {len(classes)} '
            f'classes are missing). Its {len(known):,} classes: {quoted(known)}. Name them with '
            'metainfo=dict(classes=...) in every data set, and set num_classes of the head to their number'
        )
    order = [name for name in known if name in set(classes)]
    if order != list(classes):
        raise AnnotationError(
            f'{path} lists its categories in the order {quoted(order)}, which mmdet numbers them by, and '
            f'metainfo=dict(classes=...) in the order {quoted(list(classes))}: give them in the order of the file'
        )


def _check_entries(content, path, is_ground_truth):
    """Sizes of the images and boxes of the annotations."""
    for i, entry in enumerate(content['images']):
        for key in ('width', 'height'):
            if not _is_number(entry.get(key)) or entry[key] < 1:
                raise AnnotationError(f'{path}: images[{i}] has {key} {quoted(entry.get(key))}, not a number of pixels')
    ids, flat = set(), []
    for i, entry in enumerate(content['annotations']):
        box, area, own = entry.get('bbox'), entry.get('area'), entry.get('id')
        if not isinstance(own, (int, str)) or own in ids:
            raise AnnotationError(f'{path}: annotations[{i}] has id {quoted(own)}, which is none or stands there twice')
        ids.add(own)
        if is_ground_truth and (not isinstance(own, int) or own < 1):
            raise AnnotationError(
                f'{path}: annotations[{i}] has id {quoted(own)}. Where boxes are evaluated, ids are numbers from 1 on: '
                'pycocotools counts an object with id 0 as missed, whatever is found'
            )
        if is_ground_truth and 'iscrowd' not in entry:
            raise AnnotationError(f'{path}: annotation {quoted(own)} has no iscrowd, which pycocotools needs: write 0')
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)) or min(box[2:]) < 0:
            raise AnnotationError(
                f'{path}: annotation {quoted(own)} has bbox {quoted(box)}, not [x, y, width, height] in finite numbers'
            )
        if not _is_number(area) or entry.get('iscrowd', 0) not in (0, 1):
            raise AnnotationError(
                f'{path}: annotation {quoted(own)} has area {quoted(area)} and iscrowd '
                f'{quoted(entry.get("iscrowd", 0))}, '
                'not a finite number, and 0 or 1'
            )
        if is_ground_truth and min(box[2:]) == 0 and not entry['iscrowd']:
            flat.append(f'annotation {quoted(own)}, bbox {quoted(box)}')
    if flat:
        print_log(
            f'{path}: {len(flat):,} boxes are without area, such as {flat[0]}. pycocotools counts them as missed, '
            'whatever is found: correct them, take them out, or write iscrowd 1',
            'current',
            logging.WARNING,
        )


def _is_number(value) -> bool:
    # Beyond float32 a box is infinite.
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30 and math.isfinite(value)
    )


def type_name(config: dict) -> str | None:
    """What a config builds, given as a class or by its name, without the scope in front."""
    kind = config.get('type')
    return kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', None)


def leaf_configs(dataset: ConfigDict) -> Iterator[ConfigDict]:
    """The data sets within wrappers (``ConcatDataset``, ``RepeatDataset``, ...)."""
    inner = dataset.get('datasets') or ([dataset.dataset] if 'dataset' in dataset else None)
    if inner is None:
        yield dataset
    for one in inner or ():
        yield from leaf_configs(one)
