"""Everybody else's multi-label data: a CSV with one row per image."""

import re
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from mmdet.registry import DATASETS

from .csv_rows import csv_rows, short_list
from .label_index import AnnotationError, LabelIndex, Ragged, encode_names, normalize_names, quoted, suggestion
from .multi_label import MultiLabelDataset, one_of

IMAGE_COLUMNS = (
    'image',
    'images',
    'img',
    'file',
    'filename',
    'file_name',
    'filepath',
    'file_path',
    'path',
    'img_path',
    'image_path',
    'image_name',
    'image_file',
    'image_id',
)
LABEL_COLUMNS = ('label', 'labels', 'tag', 'tags', 'class', 'classes', 'category', 'categories')
SEPARATORS = (';', '|', ',', '\t')
# The list of a data sample that each stands for.
MARKS = {
    **dict.fromkeys(('1', '1.0', 'true'), 'gt_label'),
    **dict.fromkeys(('0', '0.0', 'false'), 'gt_negative'),
    **dict.fromkeys(('-1', '-1.0'), 'gt_unknown'),
}
# How others write that nothing is known.
UNKNOWN = ('nan', 'na', 'n/a', 'null', 'none', '?')
WRITE_UNKNOWN = "-1 stands for unknown, and so does an empty cell with empty_cell='unknown'"


@DATASETS.register_module()
class CSVMultiLabelDataset(MultiLabelDataset):
    """A table with a header, UTF-8, and labels in one of three forms::

        image,labels          image,labels        image,dog,tree,sky
        a.jpg,dog;tree        a.jpg,0 3           a.jpg,1,1,0
        b.jpg,                b.jpg,              b.jpg,0,0,-1

    names, indices into ``metainfo=dict(classes=...)``, or a column for each class with 1, 0 and -1 (unknown). Form,
    separator and columns are told apart by the whole file and stated in the log; where two readings are possible, the
    error lists the options that decide. Without ``classes`` names are numbered in alphabetical order. A 0 is a verified
    negative where ``untagged_weight`` is below 1.

    Args:
        image_column, label_column: name, or position from 0; ``label_column`` may be a list of class columns. By
            default the image column is the one called image, filename, path or the like, and labels are all others.
        label_form: ``'names'``, ``'indices'`` or ``'columns'``.
        label_separator: between the labels of a cell.
        delimiter: between the columns.
        header: False where the first line is data; then the image stands in column 0 unless ``image_column`` says
            other, and ``classes`` names the class columns in their order.
        index_base: 1 where indices count from 1.
        empty_cell: what an empty cell of a class column means: ``'error'``, ``'negative'`` (with ``untagged_weight``)
            or ``'unknown'``.
        other_labels: ``'error'``, or ``'ignore'`` to leave out labels that are not among ``classes``.
        merge_rows: whether an image may stand in several rows, one for each of its labels.
        image_suffix: put behind every image name, such as ``'.jpg'``.

    The other arguments are those of ``MultiLabelDataset``.
    """

    def __init__(
        self,
        ann_file: str = '',
        image_column: str | int | None = None,
        label_column: str | int | Sequence[str | int] | None = None,
        label_form: str | None = None,
        label_separator: str | None = None,
        delimiter: str = ',',
        header: bool = True,
        index_base: int = 0,
        empty_cell: str = 'error',
        other_labels: str = 'error',
        merge_rows: bool = False,
        image_suffix: str = '',
        **kwargs,
    ):
        one_of('label_form', label_form, (None, 'names', 'indices', 'columns'))
        one_of('index_base', index_base, (0, 1))
        one_of('empty_cell', empty_cell, ('error', 'negative', 'unknown'))
        one_of('other_labels', other_labels, ('error', 'ignore'))
        if label_separator == '':
            raise ValueError("label_separator='' separates nothing: give a text such as ';', or None to find it out")
        self.image_column, self.label_column, self.label_form = image_column, label_column, label_form
        self.label_separator, self.delimiter, self.header = label_separator, delimiter, header
        self.index_base, self.empty_cell, self.other_labels = index_base, empty_cell, other_labels
        self.merge_rows, self.image_suffix = merge_rows, image_suffix
        super().__init__(ann_file, **kwargs)

    def read_index(self) -> LabelIndex:
        self.require_file(self.ann_file)
        header, first = self._first_rows()
        image = self._image_column(header)
        columns = self._label_columns(header, image, first)
        if len(columns) > 1 or self.label_form == 'columns' or isinstance(self.label_column, (list, tuple)):
            return self._read_columns(header, image, columns)
        return self._read_lists(header, image, columns[0])

    # ------------------------------------------------------------------------------------------------ what stands where

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """``(line, cells)`` of each row of data."""
        return islice(csv_rows(self.ann_file, self.delimiter), int(self.header), None)

    def _first_rows(self):
        self._check_first_line()
        rows = [[cell.strip() for cell in cells] for _, cells in islice(csv_rows(self.ann_file, self.delimiter), 2)]
        if len(rows) < (2 if self.header else 1):
            raise AnnotationError(f'{self.ann_file} has no rows of data')
        if not self.header:
            return [str(column) for column in range(len(rows[0]))], rows[0]
        header, first = rows
        picture = next((cell for cell in header if re.search(r'\.(jpe?g|png|bmp|webp|tiff?|gif)$', cell, re.I)), None)
        if picture:
            self._refuse(f'line 1 names a picture, {quoted(picture)}: is there no header?', 'header=False')
        if len(set(header)) < len(header):
            self._refuse(f'line 1 names a column twice: {short_list(header)}', 'header=False, if that line is data')
        if len(header) == 1:
            self._refuse(
                f'one column only, {quoted(header[0])}', "delimiter=';' or whatever stands between the columns"
            )
        return header, first

    def _check_first_line(self):
        """Refuses what is no table of this delimiter, which as one might seem to have broken rows."""
        with open(self.ann_file, encoding='utf-8-sig', errors='replace') as file:
            line = file.readline().strip()
        if line.startswith(('{', '[')):
            raise AnnotationError(
                f"{self.ann_file} looks like JSON; here a CSV is wanted. CocoMultiLabelDataset reads COCO's "
                "annotations, and docs/existing_projects.md turns mmpretrain's into a CSV"
            )
        other = next((mark for mark in SEPARATORS if mark in line), None)
        if other and self.delimiter not in line:
            self._refuse(f'line 1 holds {other!r}, but no {self.delimiter!r}', f'delimiter={other!r}')

    def _image_column(self, header):
        if self.image_column is not None or not self.header:
            return self._position(header, 0 if self.image_column is None else self.image_column)
        found = [column for column, name in enumerate(header) if name.lower() in IMAGE_COLUMNS]
        if len(found) != 1:
            self._refuse(
                f'{"no" if not found else "more than one"} column of {short_list(header)} is called '
                f'{", ".join(IMAGE_COLUMNS[:4])} or the like',
                'image_column=...',
            )
        return found[0]

    def _label_columns(self, header, image, first):
        if self.label_column is not None:
            wanted = self.label_column if isinstance(self.label_column, (list, tuple)) else [self.label_column]
            columns = [self._position(header, column) for column in wanted]
            if len(set(columns)) < len(columns):
                raise AnnotationError(f'{self.ann_file}: label_column={short_list(wanted)} names a column twice')
            return columns
        columns = [column for column in range(len(header)) if column != image]
        if not columns:
            self._refuse('there is no column besides the image', 'delimiter=...')
        others = f'{len(columns)} columns besides the image, {short_list([header[column] for column in columns])}'
        numbered = [header[column] for column in columns if re.fullmatch(r'(Unnamed: \d+)?', header[column])]
        if numbered:
            self._refuse(
                f'{others}, and {quoted(numbered[0])} is what pandas calls the numbers of rows',
                'to_csv(..., index=False) where the file is written, or label_column=...',
            )
        if len(columns) > 1 and self.label_form in ('names', 'indices'):
            self._refuse(others, 'label_column=...')
        if len(columns) > 1:
            listed = [header[column] for column in columns if header[column].lower() in LABEL_COLUMNS]
            wrong = next((column for column in columns if first[column].lower() not in ('', *MARKS)), None)
            if wrong is not None and first[wrong].lower() in UNKNOWN:
                self._refuse_mark(
                    f'column {quoted(header[wrong])} begins with {quoted(first[wrong])}, which', first[wrong]
                )
            if listed or wrong is not None:
                reason = (
                    f'besides columns of other contents stands {quoted(listed[0])}'
                    if listed
                    else f'column {quoted(header[wrong])} begins with {quoted(first[wrong])}, and no 0/1 column does'
                )
                self._refuse(
                    f'{others}, and {reason}',
                    "label_column='...' for one column of names or indices, "
                    "label_column=['...', '...'] for class columns with 1, 0 and -1",
                )
        return columns

    def _position(self, header, column):
        if isinstance(column, str) and column in header:
            return header.index(column)
        if isinstance(column, int) and 0 <= column < len(header):
            return column
        raise AnnotationError(f'{self.ann_file} has no column {column!r}; its columns: {short_list(header)}')

    def _refuse(self, reason, way_out):
        raise AnnotationError(f'{self.ann_file}: {reason}. Decide with {way_out}')

    def _refuse_mark(self, reason, cell):
        if not cell.strip():
            way_out = "empty_cell='negative' or 'unknown' says what an empty cell means"
        elif cell.strip().lower() in UNKNOWN:
            way_out = WRITE_UNKNOWN
        else:
            way_out = 'label_column=... says which columns hold labels'
        raise AnnotationError(f'{self.ann_file}, {reason} is not 1, 0 or -1. {way_out}')

    # --------------------------------------------------------------------------------------------- one column per class

    def _read_columns(self, header, image, columns):
        marks = dict(MARKS)
        if self.empty_cell != 'error':
            marks[''] = {'negative': 'untagged', 'unknown': 'gt_unknown'}[self.empty_cell]
        # A class that no list has is untagged, and where that weighs 1, negative.
        lists = ('gt_label', 'gt_unknown') if self.untagged_weight == 1 else ('gt_label', 'gt_negative', 'gt_unknown')
        pairs = {name: (array('q'), array('i')) for name in lists}
        lines = array('q')

        def images():
            for row, (line, cells) in enumerate(self._rows()):
                lines.append(line)
                for label, column in enumerate(columns):
                    mark = marks.get(cells[column])
                    if mark is None:
                        mark = marks.get(cells[column].strip().lower())
                    if mark is None:
                        place = f'line {line}, column {quoted(header[column])}'
                        self._refuse_mark(f'{place}: {quoted(cells[column])}', cells[column])
                    if mark in pairs:
                        rows, labels = pairs[mark]
                        rows.append(row)
                        labels.append(label)
                yield cells[image].strip() + self.image_suffix

        names = self._encode(images(), lines)
        if len(self._unique(names, lines)[0]) < len(names):
            self._refuse('merge_rows=True is for tables with one column of labels', 'unique image names')
        classes = self._classes_of(header, columns)
        self.log(f'{self.ann_file} read as one column per class with 1, 0 and -1; images in column {header[image]!r}')
        return LabelIndex(
            names,
            classes,
            {
                name: Ragged.from_pairs(np.asarray(rows), np.asarray(labels), len(names), len(classes))
                for name, (rows, labels) in pairs.items()
                if rows or name == 'gt_label'
            },
        )

    def _classes_of(self, header, columns):
        given = self._metainfo.get('classes')
        classes = tuple(header[column] for column in columns)
        if self.header or given is None or set(given) <= set(classes):
            return classes
        if len(given) != len(columns):
            raise AnnotationError(
                f'{self.ann_file} has no header and {len(columns):,} class columns, but metainfo=dict(classes=...) has '
                f'{len(given):,} names: name each column in its order, choose columns by position with '
                'label_column=[...], or add a header'
            )
        return tuple(given)

    # ---------------------------------------------------------------------------------------------- one column of lists

    def _read_lists(self, header, image, column):
        separator = self._separator(column)
        vocabulary: dict[str, int] = {}
        first_lines, tokens, counts, lines = array('q'), array('i'), array('i'), array('q')

        def images():
            for line, cells in self._rows():
                lines.append(line)
                labels = self._split(cells[column], separator, line)
                for label in labels:
                    token = vocabulary.setdefault(label, len(vocabulary))
                    if token == len(first_lines):
                        first_lines.append(line)
                    tokens.append(token)
                counts.append(len(labels))
                yield cells[image].strip() + self.image_suffix

        names = self._encode(images(), lines)
        form, classes, column_of_token = self._form(vocabulary, first_lines, separator, counts)
        columns, chosen = column_of_token[np.asarray(tokens)], len(self._metainfo.get('classes') or classes)
        others = np.count_nonzero(columns >= chosen)
        ignored = f'; {others:,} other labels are left out: {short_list(classes[chosen:])}' if others else ''
        between = f' separated by {separator!r}' if separator else ', one per image'
        origin = ' from the file in alphabetical order' if self._metainfo.get('classes') is None else ''
        self.log(
            f'{self.ann_file} read as {form}{between}, in column {header[column]!r}; images in column '
            f'{header[image]!r}; {chosen:,} classes{origin}{ignored}'
        )
        unique, row_of_line = self._unique(names, lines)
        rows = np.repeat(row_of_line, np.asarray(counts))
        return LabelIndex(unique, classes, dict(gt_label=Ragged.from_pairs(rows, columns, len(unique), len(classes))))

    def _separator(self, column):
        """What stands between labels, None where each cell holds one."""
        if self.label_separator is not None:
            return self.label_separator
        classes = set(self._metainfo.get('classes') or ())
        found, spaced, whole, split, numbers = {}, None, True, True, True
        for line, cells in self._rows():
            cell = cells[column].strip()
            if cell[:1] in ('[', '{', '('):
                self._refuse(
                    f'line {line}: {quoted(cell)} looks like a Python list',
                    "plain text such as 'dog;tree', or NUSWideDataset for the file of the ASL authors",
                )
            for separator in SEPARATORS:
                if separator in cell:
                    found.setdefault(separator, line)
            if ' ' in cell and not found:
                spaced = spaced or line
                parts = cell.split()
                whole, split = whole and cell in classes, split and classes.issuperset(parts)
                numbers = numbers and all(part.isdigit() for part in parts)
        if len(found) > 1:
            places = ' and '.join(f'{separator!r} (line {line})' for separator, line in found.items())
            self._refuse(f'labels hold {places}', f'label_separator={next(iter(found))!r}')
        if found:
            return next(iter(found))
        if spaced and not numbers and whole == split:
            self._refuse(
                f'line {spaced}: is the space in the labels between two labels, or within a name?',
                "label_separator=' ' for the one, label_separator=';' for the other",
            )
        return ' ' if spaced and (numbers or split) else None

    def _split(self, cell, separator, line):
        labels = [label.strip() for label in cell.split(separator)] if separator else [cell.strip()]
        if labels[-1] == '':
            labels.pop()
        if '' in labels and separator != ' ':
            raise AnnotationError(f'{self.ann_file}, line {line}: {quoted(cell)} has an empty label')
        return [label for label in labels if label]

    def _form(self, vocabulary, first_lines, separator, counts):
        """``(form, classes, column_of_token)``, with other labels as classes behind the chosen ones."""
        classes, form = self._metainfo.get('classes'), self.label_form
        numbers = bool(vocabulary) and all(label.isdigit() and label.isascii() for label in vocabulary)
        if form is None and numbers:
            example = next(iter(vocabulary))
            if classes is None:
                self._refuse(
                    f'labels are numbers such as {quoted(example)}',
                    "metainfo=dict(classes=[...]) if they are indices, label_form='names' if they are names",
                )
            if set(vocabulary) <= set(classes) and list(classes) != [str(column) for column in range(len(classes))]:
                self._refuse(
                    f'labels are numbers such as {quoted(example)}, and so are the names in classes',
                    "label_form='names' or 'indices'",
                )
            # As indices of two classes, some cell would hold one alone, and none three, which repeat one.
            if set(vocabulary) <= {'0', '1'} and (separator is None or 1 not in counts or max(counts) > 2):
                self._refuse(
                    'the only label column holds nothing but 0 and 1',
                    "label_form='columns' if it is a class of that name, a column for each class if each cell marks "
                    "all of them, label_form='indices' if these are indices of classes",
                )
        marks = bool(vocabulary) and {label.lower() for label in vocabulary} <= MARKS.keys()
        if form is None and not numbers and separator is None and marks and not set(vocabulary) <= set(classes or ()):
            self._refuse(
                f'the only label column holds {short_list(sorted(vocabulary))}',
                "label_form='columns' if it is a class of that name, label_form='names' if these are names",
            )
        no_name = next((label for label in vocabulary if label.lower() in ('nan', '-1')), None)
        if form is None and classes is None and no_name:
            self._refuse(
                f'line {first_lines[vocabulary[no_name]]} holds {quoted(no_name)} among names of classes',
                "an empty cell for an image without labels, or label_form='names' if this is a name",
            )
        decimal = next((label for label in vocabulary if re.fullmatch(r'\d+\.0', label)), None)
        if form is None and decimal and decimal not in (classes or ()):
            self._refuse(
                f'line {first_lines[vocabulary[decimal]]} holds {quoted(decimal)}, as pandas writes whole numbers in a '
                'column with empty cells',
                "table[column].astype('Int64') before it is written, or label_form='names' if this is a name",
            )
        form = form or ('indices' if numbers else 'names')
        if classes is None:
            if not vocabulary:
                self._refuse('no image has a label, which leaves no class', 'metainfo=dict(classes=[...])')
            if form == 'indices':
                self._refuse('indices alone do not tell how many classes there are', 'metainfo=dict(classes=[...])')
            classes = sorted(vocabulary)
        column_of_name = {
            str(column + self.index_base) if form == 'indices' else name: column for column, name in enumerate(classes)
        }
        columns, others = np.empty(len(vocabulary), dtype=np.int64), []
        for label, token in vocabulary.items():
            key = (label.lstrip('0') or '0') if form == 'indices' else label
            columns[token] = column_of_name.get(key, len(classes) + len(others))
            if columns[token] < len(classes):
                continue
            others.append(label)
            if form == 'indices' or self.other_labels == 'error':
                place = f'{self.ann_file}, line {first_lines[token]}: '
                if form == 'indices':
                    raise AnnotationError(
                        f'{place}index {label[:80]} lies outside [{self.index_base}, '
                        f'{len(classes) - 1 + self.index_base}]'
                        + ('. index_base=1 counts from 1' if label == str(len(classes)) else '')
                    )
                whole = '' if separator else '. Each cell is read as one label: label_separator=... splits it'
                raise AnnotationError(
                    f'{place}{quoted(label)} is none of the {len(classes):,} classes'
                    f"{suggestion(label, classes)}; other_labels='ignore' leaves such labels out"
                    f'{whole}'
                )
        return form, (*classes, *others), columns

    # ----------------------------------------------------------------------------------------------------------- images

    def _encode(self, images, lines):
        try:
            return encode_names(images)
        except AnnotationError as error:
            if str(error).startswith(self.ann_file):
                raise
            raise AnnotationError(f'{self.ann_file}, line {lines[-1]}: {error}') from None

    def _unique(self, names, lines):
        """``(unique names in the order of the file, row of each line among them)``."""
        unique, first, inverse = np.unique(normalize_names(names)[0], return_index=True, return_inverse=True)
        if len(unique) == len(names):
            return names, np.arange(len(names))
        if not self.merge_rows:
            again = int(np.flatnonzero(first[inverse] != np.arange(len(names)))[0])
            raise AnnotationError(
                f'{self.ann_file}: image {quoted(names[again].decode())} stands in lines '
                f'{lines[first[inverse[again]]]} and {lines[again]} (such repeated lines: '
                f'{len(names) - len(unique):,}). Take them out; merge_rows=True is for one row per label'
            )
        order = np.argsort(first)
        row_of_unique = np.empty_like(order)
        row_of_unique[order] = np.arange(len(order))
        return names[first[order]], row_of_unique[inverse]
