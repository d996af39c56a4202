from .coco import CocoMultiLabelDataset
from .csv_table import CSVMultiLabelDataset
from .formatting import PackMultiLabelInputs
from .label_index import AnnotationError
from .multi_label import MultiLabelDataset
from .split_check import SplitCheckHook, check_no_overlap

__all__ = ['AnnotationError', 'CSVMultiLabelDataset', 'CocoMultiLabelDataset', 'MultiLabelDataset', 'PackMultiLabelInputs',
           'SplitCheckHook', 'check_no_overlap']
