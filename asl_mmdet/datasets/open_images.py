"""Open Images V6, image-level labels (section 4.1.4, appendix F): 9 million images, 60 million labels, read in bulk."""

import os.path as osp
from collections.abc import Sequence

import numpy as np
from mmdet.registry import DATASETS

from .csv_rows import csv_rows
from .label_index import CHUNK, AnnotationError, LabelIndex, Ragged, first_repeated, quoted
from .multi_label import MultiLabelDataset

HEADER = b'ImageID,Source,LabelName,Confidence'
DIGITS = np.frombuffer(b'0123456789abcdef', dtype=np.uint8)
VALUE_OF_DIGIT = np.full(256, 255, dtype=np.uint8)
VALUE_OF_DIGIT[DIGITS] = np.arange(16)
# Of two statements about one label the greater counts: people over the machine, present over absent.
MACHINE_POSITIVE, NEGATIVE, POSITIVE, NOTHING = range(4)


@DATASETS.register_module()
class OpenImagesMultiLabelDataset(MultiLabelDataset):
    """The CSVs of https://storage.googleapis.com/openimages/web/download_v6.html as they are::

        ImageID,Source,LabelName,Confidence         human-verified: confidence 1 is present, 0 is absent
        000002b66c9c498e,verification,/m/01g317,1
        000002b66c9c498e,verification,/m/0dzct,0

        LabelName,DisplayName                       class descriptions, in V5 without a header
        /m/01g317,Person

    Classes are those of the descriptions, in their order; ``metainfo=dict(classes=...)`` selects by display name or by
    ``/m/...``, so that the owners' ``oidv6-classes-trainable.txt`` does. Images are those with at least one label, and
    are found at ``{image folder}/{ImageID}.jpg``.

    Args:
        ann_file: human-verified labels.
        machine_file: machine-generated labels, or None.
        machine_threshold: from this confidence on a machine's label counts as positive; below it as no label. What
            people say about a label overrides it.
        class_file: class descriptions.
        untagged: what the classes are that nobody said anything about: ``'unknown'``, ``'negative'``, or a weight
            between 0 and 1 with which they count as negative, which is what the paper trained with.

    Verified absences are in ``gt_negative``. The other arguments are those of ``MultiLabelDataset``.
    """

    def __init__(
        self,
        ann_file: str = 'oidv6-train-annotations-human-imagelabels.csv',
        machine_file: str | None = None,
        machine_threshold: float = 0.5,
        class_file: str = 'oidv6-class-descriptions.csv',
        untagged: str | float = 'unknown',
        unannotated: str = 'drop',
        data_root: str = '',
        **kwargs,
    ):
        weight = {'unknown': 0.0, 'negative': 1.0}.get(untagged, untagged)
        if isinstance(weight, str) or not 0 <= weight <= 1:
            raise ValueError(f"untagged={untagged!r}: give 'unknown', 'negative' or a weight between 0 and 1")
        self.machine_file = machine_file and osp.join(data_root, machine_file)
        self.machine_threshold, self.class_file = machine_threshold, osp.join(data_root, class_file)
        super().__init__(ann_file, unannotated=unannotated, untagged_weight=weight, data_root=data_root, **kwargs)

    def read_index(self) -> LabelIndex:
        self.require_file(self.class_file)
        labels, names = read_classes(self.class_file)
        if self._metainfo.get('classes') is not None:
            name_of_label = dict(zip(labels, names))
            chosen = tuple(name_of_label.get(name, name) for name in self._metainfo['classes'])
            if (twice := first_repeated(chosen)) is not None:
                label = labels[names.index(twice)]
                raise AnnotationError(f'metainfo: classes names {quoted(twice)} and {quoted(label)}, which is the same')
            self._metainfo['classes'] = chosen
        files = [path for path in (self.ann_file, self.machine_file) if path]
        return self.read_through_cache(
            lambda: self._parse(files, labels, names),
            [*files, self.class_file],
            format='open_images',
            threshold=self.machine_threshold,
            files=len(files),
        )

    def _parse(self, files, labels, names):
        table, parts = LabelTable(labels, self.class_file), ([], [], [], [])
        for path in files:
            for part in read_labels(path, table, self.machine_threshold if path == self.machine_file else None):
                for arrays, array in zip(parts, part):
                    arrays.append(array)
        if not parts[0]:
            raise AnnotationError(f'{self.ann_file} has no rows of data')
        ids, counts, columns, kinds = (_joined(arrays) for arrays in parts)
        del parts
        # One key for image, class and kind of each statement; sorted, the one that counts is the last of its pair.
        row_of_run = np.arange(len(ids))
        if not (ids[1:] > ids[:-1]).all():
            ids, row_of_run = np.unique(ids, return_inverse=True)
        keys = np.repeat(row_of_run * (len(names) * 4), counts)
        del row_of_run, counts
        for start in range(0, len(keys), CHUNK):
            part = slice(start, start + CHUNK)
            keys[part] += columns[part].astype(np.int64) * 4 + kinds[part]
        keys = keys[kinds != NOTHING]
        del columns, kinds
        keys.sort()
        last = np.ones(len(keys), dtype=bool)
        for start in range(0, len(keys) - 1, CHUNK):
            part = keys[start : start + CHUNK + 1] >> 2
            last[start : start + len(part) - 1] = part[1:] != part[:-1]
        negative = (keys & 3) == NEGATIVE
        keys >>= 2
        lists = {
            name: Ragged.from_sorted_keys(keys[last & wanted], len(ids), len(names))
            for name, wanted in (('gt_negative', negative), ('gt_label', ~negative))
        }
        texts = _hexadecimal(ids)
        return LabelIndex(np.char.add(texts, b'.jpg'), names, lists, texts)


def read_classes(path: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """``(labels, names)`` of the class descriptions; names that occur twice get their label behind them."""
    rows = [(line, cells[0].strip(), cells[-1].strip()) for line, cells in csv_rows(path)]
    if rows and rows[0][1] == 'LabelName':
        del rows[0]
    if not rows:
        raise AnnotationError(f'{path} describes no class')
    lines = {}
    for line, label, _ in rows:
        if not 0 < len(label.encode()) <= 16 or not label.startswith('/'):
            raise AnnotationError(f'{path}, line {line}: {quoted(label)} is not a label such as /m/01g317')
        if lines.setdefault(label, line) != line:
            raise AnnotationError(f'{path}: label {label} stands in lines {lines[label]} and {line}')
    names = [name for _, _, name in rows]
    repeated = {name for name, after in zip(sorted(names), sorted(names)[1:]) if name == after}
    return (
        tuple(label for _, label, _ in rows),
        tuple(f'{name} ({label})' if name in repeated else name for _, label, name in rows),
    )


class LabelTable:
    """Finds the class of each of many labels, given as two words of 8 bytes, padded with zeros."""

    def __init__(self, labels: Sequence[str], source: str):
        self.source = source
        words = np.array([label.encode() for label in labels], dtype='S16').view(np.uint64).reshape(-1, 2)
        hashes = self._hash(words)
        self.order = np.argsort(hashes, kind='stable')
        self.hashes, self.words = hashes[self.order], words[self.order]
        if (self.hashes[1:] == self.hashes[:-1]).any():
            raise AssertionError('two labels have one hash')

    @staticmethod
    def _hash(words):
        return (words[:, 0] * np.uint64(0x9E3779B97F4A7C15)) ^ (words[:, 1] * np.uint64(0xC2B2AE3D27D4EB4F))

    def find(self, words: np.ndarray) -> np.ndarray:
        """(n, 2) uint64 to (n,) classes; -1 where there is no such label."""
        place = np.searchsorted(self.hashes, self._hash(words)).clip(max=len(self.hashes) - 1)
        return np.where((self.words[place] == words).all(1), self.order[place], -1)


def read_labels(path: str, table: LabelTable, threshold: float | None, block: int = 1 << 23):
    """Yields for each block of the file ``(ids, counts, classes, kinds)``.

    Neighbouring rows of one image make a run: ids (r,) uint64 and counts (r,) are of runs, classes and kinds (n,) of
    rows. Without ``threshold`` the file is human-verified and confidence is 0 or 1.

    Raises:
        AnnotationError: with the line.
    """
    line = 2
    with open(path, 'rb') as file:
        if file.readline().strip().lstrip(b'\xef\xbb\xbf') != HEADER:
            raise AnnotationError(f'{path} does not begin with the line {HEADER.decode()}')
        rest = b''
        while True:
            data = file.read(block)
            text = rest + data
            if not data and text and not text.endswith(b'\n'):
                text += b'\n'
            end = text.rfind(b'\n') + 1
            text, rest = text[:end], text[end:]
            if text:
                yield _parse_block(text, line, path, table, threshold)
                line += text.count(b'\n')
            elif len(rest) > 1 << 16:
                raise AnnotationError(f'{path}, line {line} has no end')
            if not data:
                return


def _parse_block(text, line, path, table, threshold):
    data = np.frombuffer(text + bytes(16), dtype=np.uint8)
    ends = np.flatnonzero(data == ord('\n'))
    starts = np.concatenate([[0], ends[:-1] + 1])
    commas = np.flatnonzero(data == ord(','))

    def refuse(row, reason):
        row = int(row)
        content = text[starts[row] : ends[row]].decode(errors='replace')
        raise AnnotationError(f'{path}, line {line + row}: {quoted(content)} {reason}')

    if len(commas) != 3 * len(ends):
        per_row = np.searchsorted(commas, ends) - np.searchsorted(commas, starts)
        refuse(np.argmax(per_row != 3), 'does not have four fields')
    first, second, third = commas.reshape(-1, 3).T
    wrong = (first < starts) | (third > ends)
    if wrong.any():
        refuse(np.argmax(wrong), 'does not have four fields')
    if (first - starts != 16).any():
        refuse(np.argmax(first - starts != 16), 'does not begin with an image id of 16 hexadecimal digits')
    windows = np.lib.stride_tricks.sliding_window_view(data, 16)

    words = windows[starts].view(np.uint64)
    begins = np.concatenate([[True], (words[1:] != words[:-1]).any(1)])
    digits = VALUE_OF_DIGIT[words[begins].view(np.uint8)]
    if (digits > 15).any():
        refuse(
            np.flatnonzero(begins)[np.argmax((digits > 15).any(1))],
            'does not begin with an image id of 16 hexadecimal digits',
        )
    ids = (digits[:, 0::2] << 4 | digits[:, 1::2]).view('>u8')[:, 0].astype(np.uint64)
    counts = np.diff(np.append(np.flatnonzero(begins), len(ends))).astype(np.int32)

    classes = table.find(_fields(windows, second + 1, third))
    if (classes < 0).any():
        row = int(np.argmax(classes < 0))
        refuse(
            row,
            f'has label {quoted(text[second[row] + 1 : third[row]].decode(errors="replace"))}, which '
            f'{table.source} does not describe',
        )

    confidence = _fields(windows, third + 1, ends)
    kinds = np.where(confidence[:, 0] == ord('1'), POSITIVE, NEGATIVE).astype(np.uint8)
    kinds[(confidence[:, 0] != ord('1')) & (confidence[:, 0] != ord('0')) | (confidence[:, 1] != 0)] = NOTHING
    if threshold is not None or (kinds == NOTHING).any():
        values, inverse = np.unique(confidence[:, 0], return_inverse=True)
        numbers = np.array([_number(value) for value in values])
        wrong = ~((numbers >= 0) & (numbers <= 1))[inverse] | (confidence[:, 1] != 0)
        if threshold is None:
            wrong |= ((numbers != 0) & (numbers != 1))[inverse]
        if wrong.any():
            refuse(
                np.argmax(wrong),
                'ends in a confidence that is '
                + (
                    'not a number from 0 to 1'
                    if threshold is not None
                    else 'neither 0 nor 1. machine_file=... is for machine-generated labels'
                ),
            )
        if threshold is None:
            kinds = np.where(numbers == 1, POSITIVE, NEGATIVE).astype(np.uint8)[inverse]
        else:
            kinds = np.where(numbers >= threshold, MACHINE_POSITIVE, NOTHING).astype(np.uint8)[inverse]
    return ids, counts, classes.astype(np.min_scalar_type(len(table.order))), kinds


def _fields(windows, begins, ends):
    """(n, 2) words of the fields' first 16 bytes; a longer field gives words that nothing equals."""
    fields = windows[begins]
    lengths = ends - begins
    fields[np.arange(16) >= lengths[:, None]] = 0
    fields[lengths > 16] = 255
    return fields.view(np.uint64)


def _number(word: np.uint64) -> float:
    try:
        return float(word.tobytes().rstrip(b'\0').decode('ascii'))
    except ValueError:
        return float('nan')


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    """Concatenates and frees the parts."""
    joined = np.concatenate(arrays)
    arrays.clear()
    return joined


def _hexadecimal(ids: np.ndarray) -> np.ndarray:
    """(N,) uint64 to (N,) 16 digits."""
    octets = ids.astype('>u8').view(np.uint8).reshape(-1, 8)
    digits = np.empty((len(ids), 16), dtype=np.uint8)
    digits[:, 0::2], digits[:, 1::2] = DIGITS[octets >> 4], DIGITS[octets & 15]
    return digits.view('S16')[:, 0]
