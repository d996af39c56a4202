"""A data set's image names and labels as a handful of arrays: 9 million images cost no Python object each, and worker
processes share the arrays with their parent through fork."""

import difflib
import posixpath
import re
import reprlib
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Union

import numpy as np

from ..structures import GROUND_TRUTH

CHUNK = 1 << 20


class _Quote(reprlib.Repr):
    def __init__(self):
        super().__init__()
        self.maxstring = self.maxother = 80
        self.maxlevel = 2


quoted = _Quote().repr  # of what a file holds, at most a line long


class AnnotationError(ValueError):
    """The user's data do not fit together. The message is complete: file, line or class, value, and the way out."""


def message_of(error: Exception) -> str:
    """What an error says here that a worker process may have raised: torch puts the traceback of that in front."""
    return str(error).rpartition(f'{AnnotationError.__name__}: ')[2].strip()


def suggestion(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1) if len(known) < 10000 and len(name) < 100 else []
    return f' (did you mean {close[0]!r}?)' if close else ''


def first_repeated(values: Iterable[Hashable]) -> Hashable | None:
    """The first of the values that came before, None where each comes once."""
    seen = set()
    return next((value for value in values if value in seen or seen.add(value)), None)


class Ragged:
    """One sorted list of class indices for each image: list i is ``values[offsets[i]:offsets[i + 1]]``.

    Shapes: offsets (N + 1,) int64, values (K,) in the smallest unsigned type that holds the largest class.
    """

    def __init__(self, offsets: np.ndarray, values: np.ndarray):
        self.offsets, self.values = offsets, values

    @classmethod
    def from_pairs(cls, rows: np.ndarray, classes: np.ndarray, num_rows: int, num_classes: int) -> 'Ragged':
        """From (image, class) pairs in any order; repeated pairs count once."""
        keys = np.unique(np.asarray(rows, dtype=np.int64) * num_classes + np.asarray(classes, dtype=np.int64))
        return cls.from_sorted_keys(keys, num_rows, num_classes)

    @classmethod
    def from_sorted_keys(cls, keys: np.ndarray, num_rows: int, num_classes: int) -> 'Ragged':
        """From strictly ascending ``image * num_classes + class``."""
        offsets = np.searchsorted(keys, np.arange(num_rows + 1, dtype=np.int64) * num_classes)
        values = np.empty(len(keys), dtype=np.min_scalar_type(max(num_classes - 1, 0)))
        for start in range(0, len(keys), CHUNK):
            values[start : start + CHUNK] = keys[start : start + CHUNK] % num_classes
        return cls(offsets, values)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]].astype(np.int64)

    @property
    def counts(self) -> np.ndarray:
        """(N,) labels of each image."""
        return np.diff(self.offsets)

    def rows(self) -> np.ndarray:
        """(K,) the image of each value."""
        return np.repeat(np.arange(len(self)), self.counts)

    def take(self, rows: np.ndarray) -> 'Ragged':
        """The lists of these images: a mask (N,) bool, or indices, which may repeat and come in any order."""
        counts = self.counts
        if rows.dtype == bool:
            values, counts = self.values[np.repeat(rows, counts)], counts[rows]
            return Ragged(np.concatenate([[0], np.cumsum(counts)]), values)
        starts, counts = self.offsets[:-1][rows], counts[rows]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        return Ragged(offsets, self.values[np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)])

    def edited(self, remove: Sequence[tuple[int, int]], add: Sequence[tuple[int, int]]) -> 'Ragged':
        """With other (image, class) pairs: each of ``remove`` is there, none of ``add`` is, and no pair comes twice."""
        rows, _, places = self._places(remove)
        shorter = self._with_counts(np.delete(self.values, places), -np.bincount(rows, minlength=len(self)))
        rows, columns, places = shorter._places(add)
        return shorter._with_counts(np.insert(shorter.values, places, columns), np.bincount(rows, minlength=len(self)))

    def _places(self, pairs):
        rows, columns = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2).T
        places = [self.offsets[row] + np.searchsorted(self[row], column) for row, column in zip(rows, columns)]
        return rows, columns, np.array(places, dtype=np.int64)

    def _with_counts(self, values, change):
        return Ragged(np.concatenate([[0], np.cumsum(self.counts + change)]), values)

    def renumber(self, new_of_old: np.ndarray, num_classes: int) -> 'Ragged':
        """Class c becomes ``new_of_old[c]``, or is dropped where that is -1."""
        values = new_of_old[self.values]
        kept = values >= 0
        return Ragged.from_pairs(self.rows()[kept], values[kept], len(self), num_classes)


@dataclass(eq=False)
class LabelIndex(Sequence):
    """All images of a data set.

    ``index[i]`` is a dict made on demand; a slice or an array of rows gives a smaller index.

    Fields:
        names: (N,) bytes of fixed width, paths in UTF-8 relative to the image folder.
        classes: C names.
        lists: by the name of the data sample's field (``gt_label`` always, ``gt_negative``, ``gt_unknown``).
        ids: (N,) the owner's image ids; without them the names serve.
    """

    names: np.ndarray
    classes: tuple[str, ...]
    lists: dict[str, Ragged]
    ids: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: int | slice | np.ndarray) -> Union[dict, 'LabelIndex']:
        if isinstance(rows, slice):
            rows = np.arange(len(self))[rows]
        if isinstance(rows, np.ndarray):
            if rows.dtype == bool and rows.all():
                return self
            return replace(
                self,
                names=self.names[rows],
                ids=None if self.ids is None else self.ids[rows],
                lists={name: labels.take(rows) for name, labels in self.lists.items()},
            )
        if not -len(self) <= rows < len(self):
            raise IndexError(f'image {rows} of {len(self)}')
        rows %= len(self)
        name = self.names[rows].decode()
        image_id = name if self.ids is None else self.ids[rows].item()
        return dict(
            name=name,
            img_id=image_id.decode() if isinstance(image_id, bytes) else image_id,
            **{name: labels[rows] for name, labels in self.lists.items()},
        )

    @property
    def annotated(self) -> np.ndarray:
        """(N,) bool: the image has a label in at least one list."""
        return np.any([labels.counts > 0 for labels in self.lists.values()], axis=0)

    def select_classes(self, columns: Sequence[int]) -> 'LabelIndex':
        """Only these classes, in this order."""
        if list(columns) == list(range(len(self.classes))):
            return self
        new_of_old = np.full(len(self.classes), -1)
        new_of_old[list(columns)] = np.arange(len(columns))
        return replace(
            self,
            classes=tuple(self.classes[column] for column in columns),
            lists={n: labels.renumber(new_of_old, len(columns)) for n, labels in self.lists.items()},
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        arrays = dict(names=self.names, classes=np.array([name.encode() for name in self.classes], dtype='S'))
        if self.ids is not None:
            arrays['ids'] = self.ids
        for name, labels in self.lists.items():
            arrays[f'{name}.offsets'], arrays[f'{name}.values'] = labels.offsets, labels.values
        return arrays

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> 'LabelIndex':
        """Inverse of ``to_arrays``.

        Raises:
            ValueError, KeyError: the arrays do not describe an index.
        """
        names, classes = arrays['names'], tuple(name.decode() for name in arrays['classes'].tolist())
        lists = {
            n: Ragged(arrays[f'{n}.offsets'], arrays[f'{n}.values']) for n in GROUND_TRUTH if f'{n}.offsets' in arrays
        }
        for name, labels in lists.items():
            offsets, values = labels.offsets, labels.values
            if (
                names.dtype.kind != 'S'
                or offsets.shape != (len(names) + 1,)
                or offsets[0] != 0
                or offsets[-1] != len(values)
                or (np.diff(offsets) < 0).any()
                or values.dtype.kind != 'u'
                or (len(values) and int(values.max()) >= len(classes))
            ):
                raise ValueError(f'{name} does not fit {len(names)} images and {len(classes)} classes')
        if 'gt_label' not in lists or ('ids' in arrays and arrays['ids'].shape != names.shape):
            raise ValueError('arrays are missing')
        return cls(names, classes, lists, arrays.get('ids'))


def encode_names(names: Iterable[str]) -> np.ndarray:
    """(N,) fixed-width UTF-8, without an intermediate list of all names.

    Raises:
        AnnotationError: a name is empty, longer than Linux allows, or holds characters that no path can hold.
    """
    chunks, chunk = [], []
    for name in names:
        try:
            encoded = name.encode()
        except UnicodeEncodeError:
            encoded = b''
        if not encoded.strip() or len(encoded) > 1024 or b'\0' in encoded:
            raise AnnotationError(f'{quoted(name)} is not the name of an image file')
        chunk.append(encoded)
        if len(chunk) == CHUNK:
            chunks.append(np.array(chunk, dtype='S'))
            chunk = []
    chunks.append(np.array(chunk, dtype='S' if chunk else 'S1'))
    return np.concatenate(chunks)


def normalize_names(names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``./a//b.jpg`` becomes ``a/b.jpg``; returns the names and the rows whose path leaves the image folder.

    A path leaves it where it is absolute, begins with a drive letter, or climbs with ``..``, also through backslashes.
    """
    doubtful = [np.empty(0, dtype=np.int64)]
    names = np.ascontiguousarray(names)
    for start in range(0, len(names), CHUNK):
        text = names[start : start + CHUNK].view(np.uint8).reshape(-1, names.dtype.itemsize)
        dot, cut = text == ord('.'), (text == ord('/')) | (text == ord('\\'))
        pair = (dot[:, :-1] & (dot[:, 1:] | cut[:, 1:])) | (cut[:, :-1] & cut[:, 1:])
        rows = pair.any(1) | cut[:, 0] | (text[:, 1:2] == ord(':')).any(1)
        doubtful.append(np.flatnonzero(rows) + start)
    changed, outside = {}, []
    for row in np.concatenate(doubtful).tolist():
        name = names[row].decode()
        parts = re.split(r'[\\/]', name)
        if '..' in parts or parts[0] == '' or re.match(r'[A-Za-z]:', name):
            outside.append(row)
        changed[row] = posixpath.normpath(name).encode()
    if changed:
        names = names.copy()
        names[list(changed)] = list(changed.values())
    return names, np.array(outside, dtype=np.int64)
