"""Refuses to train on images that are evaluated on."""

import os.path as osp
from collections.abc import Sequence

import numpy as np
from mmdet.registry import HOOKS
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook

from .label_index import AnnotationError
from .multi_label import MultiLabelDataset


def check_no_overlap(train: BaseDataset, val: BaseDataset) -> None:
    """Compares the paths of all images, with links in the image folder's path resolved, and the classes.

    Both may be wrapped (``ConcatDataset``, ``RepeatDataset``, ...); data sets of other kinds are left alone.

    Raises:
        AnnotationError: a file is in both, or they number their classes differently.
    """
    for first in _unwrapped(train):
        for second in _unwrapped(val):
            if first.metainfo['classes'] != second.metainfo['classes']:
                position, a, b = _first_difference(first.metainfo['classes'], second.metainfo['classes'])
                raise AnnotationError(
                    f'{first.ann_file} and {second.ann_file} differ in class {position}: {a!r} and '
                    f'{b!r}. Give both the same metainfo=dict(classes=...)'
                )
            names, others = (dataset.data_list.names for dataset in (first, second))
            if _folder(first) != _folder(second):
                names, others = _full_paths(first), _full_paths(second)
            both = np.intersect1d(names, others)
            if len(both):
                raise AnnotationError(
                    f'{len(both):,} images of {second.ann_file} ({len(second):,} images) are also in {first.ann_file} '
                    f'({len(first):,} images), such as {osp.join(second.image_folder, both[0].decode())}. Training and '
                    'validation must not share images: check ann_file and split, or split one file with holdout=dict('
                    "fraction=0.2, part='train') and part='val'"
                )


@HOOKS.register_module()
class SplitCheckHook(Hook):
    """``check_no_overlap`` of a run's training and validation sets, before its first step."""

    def before_train(self, runner) -> None:
        if runner.val_loop is not None:
            check_no_overlap(runner.train_dataloader.dataset, runner.val_dataloader.dataset)


def _unwrapped(dataset) -> list[MultiLabelDataset]:
    if isinstance(dataset, MultiLabelDataset):
        dataset.full_init()
        return [dataset]
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    return [found for one in inner if one is not None for found in _unwrapped(one)]


def _folder(dataset) -> str:
    return osp.realpath(dataset.image_folder)


def _full_paths(dataset) -> np.ndarray:
    folder = _folder(dataset)
    if dataset.allow_outside:
        return np.array([osp.normpath(osp.join(folder, name.decode())).encode() for name in dataset.data_list.names])
    return np.char.add(folder.encode() + b'/', dataset.data_list.names)


def _first_difference(a: Sequence[str], b: Sequence[str]) -> tuple[int, str, str]:
    position = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return position, *(names[position] if position < len(names) else 'none' for names in (a, b))
