from .data_check_hook import DataCheckHook, check_no_overlap, check_num_classes
from .multi_label_visualization_hook import MultiLabelVisualizationHook
from .raw_and_ema_hook import RawAndEMAHook

__all__ = ['DataCheckHook', 'MultiLabelVisualizationHook', 'RawAndEMAHook', 'check_no_overlap', 'check_num_classes']
