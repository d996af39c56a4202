"""What every multi-label data set shares: choice of classes and images, checks before the first step, the report at
start, and what happens to an image that cannot be read."""

import logging
import os
import os.path as osp
import zlib
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.dataset.base_dataset import force_full_init
from mmengine.dist import is_main_process
from mmengine.logging import print_log

from .corrections import correct
from .index_cache import cache_file, cached_index
from .label_index import CHUNK, AnnotationError, LabelIndex, first_repeated, normalize_names, quoted, suggestion


class MultiLabelDataset(BaseDataset):
    """Base class; a data set implements ``read_index``.

    Args:
        ann_file, metainfo, data_root, data_prefix, pipeline, test_mode, indices, lazy_init, max_refetch: as in
            mmengine's ``BaseDataset``. ``metainfo=dict(classes=...)``, names or a text file of one name a line, selects
            and orders the classes. ``data_prefix=dict(img_path=...)`` is the image folder; mmdet's key ``img`` does as
            well.
        unannotated: ``'drop'`` leaves out images that have no label of any class in the file, chosen or not; ``'keep'``
            takes them as images without positives.
        untagged_weight: in [0, 1], with which a class that an image does not list counts as its negative; 0: unknown.
        expected_images: how many images the whole file must give after ``unannotated``; another number is an error.
        holdout: ``dict(fraction=0.2, part='train')`` or ``part='val'`` splits one file by a fixed rule: an image is
            held out where CRC-32 of its name in the file, divided by 2^32, is below the fraction.
        missing_images: the folders are listed at start, and an image that is not there is an ``'error'``, or left out
            and counted (``'drop'``); ``'unchecked'`` lists nothing.
        corrections: CSV of labels to be read otherwise than the file says, as ``tools/analysis_tools/audit_labels.py``
            has them made: columns image (name in the file), class (name) and decision, which is ``positive``,
            ``negative`` or ``unknown``. They count before ``unannotated``, ``expected_images`` and ``holdout``, and for
            all parts of the file; a path that is not absolute starts at ``data_root``.
        allow_outside: whether the file may name images outside the image folder, by ``../`` or absolute paths.
        max_corrupt_images: so many different images of this process may be unreadable in training; each is logged and
            replaced by a random other one, and the next one is an error. In test mode each is an error.
        cache: whether data sets whose files take long to parse keep the result beside the file, or a folder for it.

    ``get_data_info(i)`` gives ``img_path``, ``img_id``, ``sample_idx``, ``num_classes``, ``untagged_weight``,
    ``gt_label`` (K,) int64 ascending, and where the data set has them ``gt_negative`` and ``gt_unknown``.

    Raises:
        AnnotationError: see its docstring; from the constructor wherever the files alone show the fault.
    """

    def __init__(
        self,
        ann_file: str = '',
        metainfo: dict | None = None,
        data_root: str = '',
        data_prefix: dict = dict(img_path=''),
        pipeline: Sequence[dict | Callable] = (),
        test_mode: bool = False,
        unannotated: str = 'keep',
        untagged_weight: float = 1.0,
        expected_images: int | None = None,
        holdout: dict | None = None,
        missing_images: str = 'error',
        corrections: str | None = None,
        allow_outside: bool = False,
        max_corrupt_images: int = 10,
        cache: bool | str = True,
        **kwargs,
    ):
        if kwargs.get('filter_cfg'):
            raise ValueError(
                f"filter_cfg={kwargs['filter_cfg']!r} is for detectors: unannotated='drop' leaves out images "
                'without labels'
            )
        one_of('unannotated', unannotated, ('drop', 'keep'))
        one_of('missing_images', missing_images, ('error', 'drop', 'unchecked'))
        if not isinstance(untagged_weight, Real) or not 0 <= untagged_weight <= 1:
            raise ValueError(f'untagged_weight={untagged_weight!r}: give a number in [0, 1]; 0 is unknown, 1 negative')
        if holdout is not None:
            complete = isinstance(holdout, dict) and set(holdout) == {'fraction', 'part'}
            if not complete or not 0 < holdout['fraction'] < 1:
                raise ValueError(
                    f"holdout={holdout!r}: give dict(fraction=..., part='train' or 'val'), with the "
                    'fraction between 0 and 1'
                )
            one_of("holdout['part']", holdout['part'], ('train', 'val'))
        if not isinstance(data_prefix, dict) or len(data_prefix) != 1 or not set(data_prefix) <= {'img_path', 'img'}:
            raise ValueError(f'data_prefix={data_prefix!r}: give the image folder as dict(img_path=...)')
        self.unannotated, self.untagged_weight, self.expected_images = unannotated, untagged_weight, expected_images
        self.holdout, self.missing_images, self.allow_outside = holdout, missing_images, allow_outside
        self.max_corrupt_images, self.cache = max_corrupt_images, cache
        self.corrections = corrections and osp.join(data_root, corrections)
        super().__init__(
            ann_file=ann_file,
            metainfo=metainfo,
            data_root=data_root,
            data_prefix=data_prefix,
            pipeline=list(pipeline),
            test_mode=test_mode,
            serialize_data=False,
            **kwargs,
        )

    # ------------------------------------------------------------------------------------------------- for subclasses

    def read_index(self) -> LabelIndex:
        """Every image of the split, with the labels of all classes that the files know."""
        raise NotImplementedError

    def read_through_cache(self, read: Callable[[], LabelIndex], sources: Sequence[str], **options) -> LabelIndex:
        """``read()``, or its result at an earlier start from the same ``sources`` and ``options`` (JSON)."""
        for path in sources:
            self.require_file(path)
        if not self.cache:
            return read()
        return cached_index(cache_file(sources[0], self.cache), sources, options, read)

    def require_file(self, path: str) -> None:
        if not path:
            raise AnnotationError(f'{type(self).__name__} needs ann_file')
        if not osp.isfile(path):
            raise AnnotationError(
                f'{path} does not exist. Paths that are not absolute start at data_root='
                f'{self.data_root!r}, and that at {os.getcwd()}'
            )

    def log(self, message: str, level: int = logging.INFO) -> None:
        """Once, not once per process."""
        if is_main_process():
            print_log(f'{type(self).__name__}: {message}', 'current', level)

    # -------------------------------------------------------------------------------------------------- start of a run

    @classmethod
    def _load_metainfo(cls, metainfo: dict | None = None) -> dict:
        given = metainfo and metainfo.get('classes')
        try:
            metainfo = super()._load_metainfo(metainfo)
        except UnicodeDecodeError as error:
            raise AnnotationError(f'metainfo: {given} is not a text file in UTF-8: {error}') from None
        classes = metainfo.get('classes')
        if isinstance(classes, str):
            raise AnnotationError(
                f'metainfo: there is no file {classes!r}. Classes are a list of names, or a text '
                'file with one name a line'
            )
        if classes is not None:
            if isinstance(given, str):
                # Files of names begin with a byte order mark, and end in blank lines, or in \r\n.
                classes = [name.removeprefix('\ufeff').strip() for name in classes]
                classes = [name for name in classes if name]
            wrong = [name for name in classes if not isinstance(name, str)]
            if wrong:
                raise AnnotationError(f'metainfo: classes holds {quoted(wrong[0])}, which is not a name')
            if (twice := first_repeated(classes)) is not None:
                raise AnnotationError(f'metainfo: classes names {quoted(twice)} twice')
            if not classes:
                raise AnnotationError('metainfo: classes is empty')
            metainfo['classes'] = tuple(classes)
        return metainfo

    @property
    def image_folder(self) -> str:
        return next(iter(self.data_prefix.values()))

    def load_data_list(self) -> LabelIndex:
        index = self.read_index()
        if self.corrections:
            self.require_file(self.corrections)
            # After the cache, which holds what the annotation files say.
            index, summary = correct(index, self.corrections, self.ann_file, self.untagged_weight)
            self.log(summary)
        counts = [f'{len(index):,} in {self.ann_file}']
        if self.unannotated == 'drop':
            index = index[index.annotated]
            counts.append(f'{len(index):,} with labels')
        if self.expected_images not in (None, len(index)):
            raise AnnotationError(
                f'{self.ann_file} gives {len(index):,} images, but expected_images='
                f'{self.expected_images:,}. Is it the right split, and complete?'
            )
        if self.holdout:
            index = index[_held_out(index.names, self.holdout['fraction']) == (self.holdout['part'] == 'val')]
            counts.append(
                f'{len(index):,} in part {self.holdout["part"]!r} (held out: crc32(name) / 2^32 < '
                f'{self.holdout["fraction"]})'
            )
        index.names, outside = normalize_names(index.names)
        if len(outside) and not self.allow_outside:
            raise AnnotationError(
                f'{self.ann_file} names {index.names[outside[0]].decode()!r}, which lies outside the '
                f'image folder {self.image_folder!r}; allow_outside=True permits that for a file you '
                f'trust ({len(outside):,} such images)'
            )
        if len(index) and self.missing_images != 'unchecked' and '://' not in self.image_folder:
            index = index[~self._find_missing(index.names)]
            counts.append(f'{len(index):,} of them on disk')
        if not len(index):
            raise AnnotationError(
                f'no image is left: {", ".join(counts)}. unannotated, holdout and missing_images decide which are'
            )
        self._funnel = counts
        index = index.select_classes(self._columns(index.classes))
        self._metainfo['classes'] = index.classes
        return index

    def _columns(self, classes):
        """Where the chosen classes stand in the file's."""
        wanted = self._metainfo.get('classes')
        if wanted is None:
            return range(len(classes))
        column_of_name = {name: column for column, name in enumerate(classes)}
        missing = [name for name in wanted if name not in column_of_name]
        if missing:
            raise AnnotationError(
                f'{self.ann_file} has no class {", ".join(map(repr, missing[:10]))}'
                f'{suggestion(missing[0], classes)}. Its {len(classes):,} classes: '
                f'{", ".join(classes[:20])}{" ..." if len(classes) > 20 else ""}. Leave it out of '
                'metainfo=dict(classes=...), or add it there: to a table as a column of -1 where nobody looked for it'
            )
        return [column_of_name[name] for name in wanted]

    def _find_missing(self, names):
        missing = missing_files(self.image_folder, names)
        count = np.count_nonzero(missing)
        if count:
            first = [osp.join(self.image_folder, name.decode()) for name in names[missing][:3]]
            message = f'{count:,} of {len(names):,} images of {self.ann_file} do not exist, such as {", ".join(first)}'
            if self.missing_images == 'error':
                folder = osp.dirname(first[0])
                message += '' if osp.isdir(folder) else f' (there is no folder {folder!r})'
                if not any(osp.splitext(path)[1] for path in first):
                    message += " (names without an ending: a table takes image_suffix='.jpg' or the like)"
                if b'\\' in names[missing][0]:
                    message += ' (names with backslashes, as Windows writes paths: write / in their place)'
                raise AnnotationError(
                    f"{message}. Correct data_root or data_prefix, or leave them out with missing_images='drop'"
                )
            self.log(f'{message}; left out', logging.WARNING)
        return missing

    def full_init(self) -> None:
        if self._fully_initialized:
            return
        super().full_init()
        self._forget_corrupt_images()
        self.log(self._report())

    @force_full_init
    def statistics(self) -> dict:
        """Counts of this data set.

        ``images``; ``classes``; ``labels_per_image``; ``positive_negative_ratio``, all positives over all that count as
        negative, the untagged among them unless they are unknown (inf without negatives); ``negative``, ``unknown``:
        labels listed as such; ``positives`` (C,), images of each class; ``classes_without_positives``: their names.
        """
        index, classes = self.data_list, self.metainfo['classes']
        positives = np.bincount(index.lists['gt_label'].values, minlength=len(classes))
        positive = int(positives.sum())
        negative, unknown = (
            len(index.lists[name].values) if name in index.lists else 0 for name in ('gt_negative', 'gt_unknown')
        )
        negatives = negative if self.untagged_weight == 0 else len(index) * len(classes) - positive - unknown
        return dict(
            images=len(index),
            classes=len(classes),
            labels_per_image=positive / max(len(index), 1),
            positive_negative_ratio=positive / negatives if negatives else float('inf'),
            negative=negative,
            unknown=unknown,
            positives=positives,
            classes_without_positives=[classes[column] for column in np.flatnonzero(positives == 0)],
        )

    def _report(self):
        counts = self.statistics()
        empty = counts['classes_without_positives']
        partial = f'{counts["negative"]:,} verified negatives, ' if counts['negative'] else ''
        partial += f'{counts["unknown"]:,} unknown, ' if counts['unknown'] else ''
        if self.untagged_weight < 1:
            partial += (
                'untagged classes unknown, '
                if self.untagged_weight == 0
                else f'untagged classes negative with weight {self.untagged_weight:g}, '
            )
        return (
            f'{counts["images"]:,} images ({", ".join(self._funnel)}), {counts["classes"]:,} classes, '
            f'{counts["labels_per_image"]:.2f} labels per image, {partial}positive-negative ratio '
            f'{counts["positive_negative_ratio"]:.4f}, '
            + (
                f'{len(empty):,} classes without positives: {", ".join(empty[:10])}{" ..." if len(empty) > 10 else ""}'
                if empty
                else 'no class without positives'
            )
        )

    # ------------------------------------------------------------------------------------------------------- one image

    @force_full_init
    def get_data_info(self, idx: int) -> dict:
        info = self.data_list[idx]
        info['img_path'] = osp.join(self.image_folder, info.pop('name'))
        info.update(
            sample_idx=idx % len(self.data_list),
            num_classes=len(self.data_list.classes),
            untagged_weight=self.untagged_weight,
        )
        return info

    @force_full_init
    def get_cat_ids(self, idx: int) -> list[int]:
        """The positive classes, for mmengine's ``ClassBalancedDataset``."""
        return self.data_list.lists['gt_label'][idx].tolist()

    def prepare_data(self, idx: int) -> Any:
        """The pipeline's result, or None for an image that is passed over."""
        if not self.test_mode and self._corrupt[idx]:
            return None
        try:
            data, error = self.pipeline(self.get_data_info(idx)), None
        except (MemoryError, AnnotationError):
            raise
        except Exception as caught:
            data, error = None, caught
        if data is not None:
            return data
        path, unreadable = self.get_data_info(idx)['img_path'], self._why_unreadable(idx)
        if unreadable is None:
            if error is None:
                return None
            raise RuntimeError(f'the pipeline fails on {path}: {type(error).__name__}: {error}') from error
        if self.test_mode:
            raise AnnotationError(
                f'{path} of {self.ann_file} cannot be read: {unreadable}. An evaluation leaves no '
                'image out by itself; restore the file or take it out of the annotations'
            ) from error
        self._corrupt[idx] = 1
        count = int(self._corrupt.sum())
        if count > self.max_corrupt_images:
            raise AnnotationError(
                f'{path} of {self.ann_file} cannot be read: {unreadable}. It is no. {count}, more '
                f'than max_corrupt_images={self.max_corrupt_images}'
            ) from error
        # At level ERROR, since the loggers of the other ranks show nothing below it.
        print_log(
            f'{path} of {self.ann_file} cannot be read and is replaced by a random other image, no. {count} of '
            f'at most {self.max_corrupt_images}: {unreadable}',
            'current',
            logging.ERROR,
        )
        return None

    def _why_unreadable(self, idx):
        """None where the first transform, the loader, does its work, so that the fault lies further down."""
        try:
            if self.pipeline.transforms[0](self.get_data_info(idx)) is not None:
                return None
            return f'{type(self.pipeline.transforms[0]).__name__} returned nothing'
        except Exception as error:
            return why_unreadable(self.get_data_info(idx)['img_path'], error)

    # --------------------------------------------------------------------------------------------------------- subsets

    def _forget_corrupt_images(self):
        # One flag per image in memory that the workers share: each unreadable image counts once in all of them, however
        # often it comes up, and no lock is needed.
        self._corrupt = None if self.test_mode else torch.zeros(len(self), dtype=torch.uint8).share_memory_()

    def _copy_without_annotation(self, memo: dict | None = None) -> 'MultiLabelDataset':
        # mmengine 0.10.7 keeps one memo for all calls, so that later subsets share the attributes of the first.
        return super()._copy_without_annotation({} if memo is None else memo)

    def _get_unserialized_subset(self, indices: Sequence[int] | int) -> LabelIndex:
        rows = np.arange(len(self.data_list))
        return self.data_list[
            (rows[:indices] if indices >= 0 else rows[indices:])
            if isinstance(indices, int)
            else rows[np.asarray(indices, dtype=np.int64)]
        ]

    def get_subset_(self, indices: Sequence[int] | int) -> None:
        super().get_subset_(indices)
        self._forget_corrupt_images()

    def get_subset(self, indices: Sequence[int] | int) -> 'MultiLabelDataset':
        subset = super().get_subset(indices)
        subset._forget_corrupt_images()
        return subset


def one_of(name, value, choices):
    if value not in choices:
        raise ValueError(f'{name}={value!r}: give one of {", ".join(map(repr, choices))}')


def why_unreadable(path: str, error: Exception) -> str:
    """The error in one line, or that the file is empty."""
    empty = osp.isfile(path) and not osp.getsize(path)
    return 'the file is empty' if empty else ' '.join(f'{type(error).__name__}: {error}'.split())


def _held_out(names, fraction):
    return np.fromiter((zlib.crc32(name) < fraction * 2**32 for name in names.tolist()), dtype=bool, count=len(names))


def missing_files(root: str, names: np.ndarray) -> np.ndarray:
    """(N,) bool for (N,) bytes, names of files in ``root``; from one listing of each folder."""
    listings, missing = {}, np.zeros(len(names), dtype=bool)
    root = os.fsencode(root)
    for start in range(0, len(names), CHUNK):
        for row, name in enumerate(names[start : start + CHUNK].tolist(), start):
            folder, slash, base = name.rpartition(b'/')
            folder += slash
            listing = listings.get(folder)
            if listing is None:
                listing = listings[folder] = _list_folder(osp.join(root, folder) or b'.')
            missing[row] = base not in listing
    return missing


def _list_folder(folder):
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()
