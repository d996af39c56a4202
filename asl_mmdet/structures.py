"""What one image of a multi-label data set carries from the pipeline to head, metric and visualizer."""
from typing import Optional, Sequence, Tuple

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor


class MultiLabelDataSample(BaseDataElement):
    """Labels as class indices, never as a dense vector; the names are mmpretrain's where it has one.

    Fields, all optional:
        gt_label: (K,) int64, the positive classes; exactly one in single-label data.
        gt_negative: (M,) int64, classes verified to be absent.
        gt_unknown: (U,) int64, classes that are neither positive nor negative, such as VOC's difficult objects.
        pred_score: (C,) float, probabilities.
        pred_label: (P,) int64, the classes that the head decided for.

    Metainfo: ``num_classes``, and ``untagged_weight``, the weight in [0, 1] with which a class in none of the lists counts as
    negative; 0 means unknown, absent means 1.
    """


def dense_targets(data_samples: Sequence[MultiLabelDataSample], num_classes: int,
                  device: Optional[torch.device] = None) -> Tuple[Tensor, Optional[Tensor]]:
    """Targets (N, C) of 1, 0 and -1 (unknown) and their weights (N, C), or None where all weigh 1.

    Raises:
        ValueError: a class index lies outside [0, C).
    """
    untagged_weights = torch.tensor([sample.get('untagged_weight', 1.0) for sample in data_samples])
    untagged_labels = torch.where(untagged_weights == 0, -1.0, 0.0)
    targets = untagged_labels[:, None].repeat(1, num_classes)
    partial = ((untagged_weights > 0) & (untagged_weights < 1))[:, None]
    weights = torch.where(partial, untagged_weights[:, None], 1.0).repeat(1, num_classes) if partial.any() else None
    for name, label in (('gt_negative', 0.0), ('gt_unknown', -1.0), ('gt_label', 1.0)):
        listed = [sample.get(name, torch.empty(0, dtype=torch.int64)) for sample in data_samples]
        columns = torch.cat(listed) if listed else torch.empty(0, dtype=torch.int64)
        if columns.numel() and not 0 <= int(columns.min()) <= int(columns.max()) < num_classes:
            wrong = next((s, c) for s, cs in zip(data_samples, listed) for c in cs.tolist() if not 0 <= c < num_classes)
            raise ValueError(f'{name} of {wrong[0].get("img_path", "a sample")} holds class {wrong[1]}, but the head has '
                             f'num_classes={num_classes}')
        rows = torch.repeat_interleave(torch.tensor([len(columns) for columns in listed], dtype=torch.int64))
        targets[rows, columns] = label
        if weights is not None:
            weights[rows, columns] = 1.0
    return targets.to(device), None if weights is None else weights.to(device)
