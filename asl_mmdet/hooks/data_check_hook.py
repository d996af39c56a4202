"""Refuses, before the first step, data that do not fit the model or each other."""

import os.path as osp
import re
from collections.abc import Sequence

import numpy as np
from mmdet.datasets import BaseVideoDataset
from mmdet.models import RPN
from mmdet.registry import HOOKS
from mmengine.dataset import BaseDataset, Compose
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn

from ..datasets import AnnotationError, MultiLabelDataset
from ..datasets.detection import NamedPipeline
from ..evaluation import MultiLabelMetric


def check_no_overlap(train: BaseDataset, val: BaseDataset) -> None:
    """Compares the paths of all images, with links in the image folder's path resolved, and the classes.

    Both may be wrapped (``ConcatDataset``, ``RepeatDataset``, ...); data sets of other kinds are left alone.

    Raises:
        AnnotationError: a file is in both, or they number their classes differently.
    """
    for first in _multi_label(train):
        for second in _multi_label(val):
            if first.metainfo['classes'] != second.metainfo['classes']:
                position, a, b = _first_difference(first.metainfo['classes'], second.metainfo['classes'])
                raise AnnotationError(
                    f'{first.ann_file} and {second.ann_file} differ in class {position}: {a!r} and '
                    f'{b!r}. Give both the same metainfo=dict(classes=...), of classes that both have'
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
                    "fraction=0.2, part='train') and part='val'. For the tools, "
                    'check_data=False in the config allows it'
                )


def check_num_classes(model: nn.Module, dataset: BaseDataset) -> None:
    """Compares ``num_classes`` of every head of the model with the data set's.

    Left alone are heads with classes of their own (``rpn_head``, ``semantic_head``, those of a ``reid`` network,
    class-agnostic ones), an RPN by itself, models whose classes are words (GLIP, Grounding DINO), panoptic data sets
    and videos.

    Raises:
        AnnotationError: they differ.
    """
    model = model.module if is_model_wrapper(model) else model
    if hasattr(model, 'language_model') or isinstance(model, RPN):
        return
    heads = {
        name: module
        for name, module in model.named_modules()
        if re.search(r'(^|\.)(?!rpn_head|semantic_head)\w*head(\.\d+)?$', name)
        and isinstance(getattr(module, 'num_classes', None), int)
        and not re.search(r'(^|\.)reid\.', name)
        and not getattr(module, 'class_agnostic', False)
    }
    for part in leaf_datasets(dataset):
        classes = part.metainfo.get('classes')
        has_others = 'thing_classes' in part.metainfo or isinstance(part, BaseVideoDataset)
        if has_others or not isinstance(classes, (list, tuple)):
            continue
        for name, head in heads.items():
            if head.num_classes != len(classes):
                shown = ', '.join(map(str, classes[:5])) + (' ...' if len(classes) > 5 else '')
                raise AnnotationError(
                    f'{part.ann_file or type(part).__name__} has {len(classes):,} classes ({shown}), but '
                    f'{type(head).__name__} has num_classes={head.num_classes}: set model.{name}.num_classes='
                    f'{len(classes)}, or choose {head.num_classes:,} classes with metainfo=dict(classes=...). '
                    'For the tools, check_data=False in the config allows it'
                )


def check_measurable(evaluator: Evaluator, dataset: BaseDataset) -> None:
    """
    Raises:
        AnnotationError: ``MultiLabelMetric`` is to measure a data set in which no image has a label.
    """
    parts = _multi_label(dataset)
    if not parts or not any(isinstance(metric, MultiLabelMetric) for metric in evaluator.metrics):
        return
    if not any(len(part.data_list.lists['gt_label'].values) for part in parts):
        raise AnnotationError(
            f'{", ".join(str(part.ann_file) for part in parts)}: none of {sum(map(len, parts)):,} images has a label, '
            'so that MultiLabelMetric has nothing to measure: check ann_file and split, or evaluate another data set. '
            'For the tools, check_data=False in the config allows it'
        )


@HOOKS.register_module()
class DataCheckHook(Hook):
    """``check_num_classes`` and ``check_measurable`` of every data set that a run begins to use, and
    ``check_no_overlap`` before training. From then on, where a detector's pipeline fails, the error names the picture.
    """

    def before_train(self, runner) -> None:
        name_pictures(runner.train_dataloader.dataset)
        check_num_classes(runner.model, runner.train_dataloader.dataset)
        if runner.val_loop is not None:
            check_measurable(runner.val_loop.evaluator, runner.val_dataloader.dataset)
            check_no_overlap(runner.train_dataloader.dataset, runner.val_dataloader.dataset)

    def before_val(self, runner) -> None:
        name_pictures(runner.val_dataloader.dataset)
        check_num_classes(runner.model, runner.val_dataloader.dataset)
        check_measurable(runner.val_loop.evaluator, runner.val_dataloader.dataset)

    def before_test(self, runner) -> None:
        name_pictures(runner.test_dataloader.dataset)
        check_num_classes(runner.model, runner.test_dataloader.dataset)
        check_measurable(runner.test_loop.evaluator, runner.test_dataloader.dataset)


def leaf_datasets(dataset) -> list[BaseDataset]:
    """The data sets within wrappers (``ConcatDataset``, ``RepeatDataset``, ...)."""
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if inner != [None]:
        return [leaf for one in inner for leaf in leaf_datasets(one)]
    if not isinstance(dataset, BaseDataset):
        return []
    dataset.full_init()
    return [dataset]


def name_pictures(dataset: BaseDataset) -> None:
    """Makes the pipelines of data sets for detectors a ``NamedPipeline``."""
    for part in leaf_datasets(dataset):
        if not isinstance(part, MultiLabelDataset) and type(part.pipeline) is Compose:
            part.pipeline = NamedPipeline(part.pipeline.transforms)


def _multi_label(dataset) -> list[MultiLabelDataset]:
    return [leaf for leaf in leaf_datasets(dataset) if isinstance(leaf, MultiLabelDataset)]


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
