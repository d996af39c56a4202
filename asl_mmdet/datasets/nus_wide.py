"""NUS-WIDE, in the variant that the authors of ASL publish (appendix E)."""

import ast

import numpy as np
from mmdet.registry import DATASETS

from .csv_rows import csv_rows
from .label_index import AnnotationError, LabelIndex, Ragged, encode_names, quoted, suggestion
from .multi_label import MultiLabelDataset


@DATASETS.register_module()
class NUSWideDataset(MultiLabelDataset):
    """The authors' ``nus_wid_data.csv``, both splits in one file::

        filepath,label,split_name
        images/0001_2124494179.jpg,"['clouds', 'sky']",train

    Args:
        split: ``'train'`` or ``'val'``, as in the column ``split_name``.

    Classes are NUS-WIDE's 81 concepts in alphabetical order. The other arguments are those of ``MultiLabelDataset``.
    """

    METAINFO = dict(
        classes=tuple(
            (
                'airport animal beach bear birds boats book bridge buildings cars castle cat cityscape clouds '
                'computer coral cow dancing dog earthquake elk fire fish flags flowers food fox frost garden glacier '
                'grass harbor horses house lake leaf map military moon mountain nighttime ocean person plane plants '
                'police protest railroad rainbow reflection road rocks running sand sign sky snow soccer sports '
                'statue street sun sunset surf swimmers tattoo temple tiger tower town toy train tree valley vehicle '
                'water waterfall wedding whales window zebra'
            ).split()
        )
    )

    def __init__(self, ann_file: str = 'nus_wid_data.csv', split: str = 'train', **kwargs):
        self.split = split
        super().__init__(ann_file, **kwargs)

    def read_index(self) -> LabelIndex:
        self.require_file(self.ann_file)
        lines, names, lists, columns_of_cell, splits = {}, [], [], {}, set()
        rows = csv_rows(self.ann_file)
        header = next(rows, (1, []))[1]
        if [cell.strip() for cell in header] != ['filepath', 'label', 'split_name']:
            raise AnnotationError(
                f'{self.ann_file} begins with {quoted(header)}, not with filepath, label, split_name. '
                'CSVMultiLabelDataset reads other tables'
            )
        for line, (name, cell, split) in rows:
            if lines.setdefault(name, line) != line:
                raise AnnotationError(f'{self.ann_file}: image {quoted(name)} stands in lines {lines[name]} and {line}')
            if cell not in columns_of_cell:
                columns_of_cell[cell] = self._columns_of(cell, line)
            splits.add(split)
            if split == self.split:
                names.append(name)
                lists.append(columns_of_cell[cell])
        if self.split not in splits:
            raise AnnotationError(f'{self.ann_file} has no split {self.split!r}; its splits: {quoted(sorted(splits))}')
        try:
            encoded = encode_names(names)
        except AnnotationError as error:
            raise AnnotationError(f'{self.ann_file}: {error}') from None
        classes = self.METAINFO['classes']
        rows = np.repeat(np.arange(len(names)), [len(columns) for columns in lists])
        columns = [column for columns in lists for column in columns]
        return LabelIndex(encoded, classes, dict(gt_label=Ragged.from_pairs(rows, columns, len(names), len(classes))))

    def _columns_of(self, cell, line):
        place = f'{self.ann_file}, line {line}: '
        try:
            labels = ast.literal_eval(cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            labels = None
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise AnnotationError(f"{place}{quoted(cell)} is not a list of names such as ['clouds', 'sky']")
        classes = self.METAINFO['classes']
        unknown = next((label for label in labels if label not in classes), None)
        if unknown is not None:
            raise AnnotationError(
                f"{place}{quoted(unknown)} is none of NUS-WIDE's 81 concepts{suggestion(unknown, classes)}"
            )
        return [classes.index(label) for label in labels]
