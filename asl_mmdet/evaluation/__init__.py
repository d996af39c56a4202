from .multi_label import (
    Counts,
    Ranking,
    SparseLabels,
    average_precision,
    best_f1,
    class_f1,
    class_precision_recall,
    counts_at_threshold,
    counts_of_predictions,
    official_mean_average_precision,
    precision_recall_f1,
    rank_positives,
    top_classes,
)
from .multi_label_metric import MultiLabelMetric

__all__ = [
    'Counts',
    'MultiLabelMetric',
    'Ranking',
    'SparseLabels',
    'average_precision',
    'best_f1',
    'class_f1',
    'class_precision_recall',
    'counts_at_threshold',
    'counts_of_predictions',
    'official_mean_average_precision',
    'precision_recall_f1',
    'rank_positives',
    'top_classes',
]
