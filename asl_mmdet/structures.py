"""What one image of a multi-label data set carries from the pipeline to head, metric and visualizer."""

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

GROUND_TRUTH = ('gt_label', 'gt_negative', 'gt_unknown')

# torch.compiler.disable, except that it imports the compiler, half a second, at the first call only.
never_compiled = torch._disable_dynamo


class MultiLabelDataSample(BaseDataElement):
    """Labels as class indices, never as a dense vector; the names are mmpretrain's where it has one.

    Fields, all optional:
        gt_label: (K,) int64, the positive classes; exactly one in single-label data.
        gt_negative: (M,) int64, classes verified to be absent.
        gt_unknown: (U,) int64, classes that are neither positive nor negative, such as VOC's difficult objects.
        pred_score: (C,) float, probabilities.
        pred_label: (P,) int64, the classes that the head decided for.

    Metainfo: ``num_classes``, and ``untagged_weight``, the weight in [0, 1] with which a class in none of the lists
    counts as negative; 0 means unknown, absent means 1.
    """

    @never_compiled
    def to(self, *args, **kwargs) -> 'MultiLabelDataSample':
        """As of any data element, but ground truth stays where it is, and as it is.

        Data preprocessors call this on every sample. A few indices are cheaper to gather on the CPU than to send one by
        one, each copy waiting for the GPU; :func:`dense_targets` sends a batch of them at once.
        """
        moved = self.new()
        moved.set_data(
            {
                name: value.to(*args, **kwargs)
                for name, value in self.items()
                if name not in GROUND_TRUTH and hasattr(value, 'to')
            }
        )
        return moved


@never_compiled
def dense_targets(
    data_samples: Sequence[MultiLabelDataSample], num_classes: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor | None]:
    """What a batch says about every class.

    Where the lists of a sample overlap, positive wins over unknown, and unknown over negative. The result is written on
    ``device`` (CPU when None) without waiting for it. Indices that lie on a GPU are not read back to be checked: one
    out of range turns the targets of the whole batch into NaN, and so the loss.

    Returns:
        Targets (N, C) of 1, 0 and -1 (unknown), and their weights (N, C), or None where all weigh 1; float32.

    Raises:
        ValueError: a sample has no ground truth or another number of classes, a class index lies outside [0, C), or
            ``untagged_weight`` outside [0, 1].
        TypeError: class indices are not integers.
    """
    device = torch.device('cpu' if device is None else device)
    _check_samples(data_samples, num_classes)
    untagged = [float(sample.get('untagged_weight', 1.0)) for sample in data_samples]
    weights, wrong = None, []
    if all(weight == 1 for weight in untagged):
        targets = torch.zeros(len(untagged), num_classes, device=device)
    else:
        column = _send(torch.tensor(untagged), device)[:, None]  # (N, 1)
        targets = torch.where(column == 0, -1.0, 0.0).repeat(1, num_classes)
        if any(0 < weight < 1 for weight in untagged):
            weights = torch.where(column == 0, 1.0, column).repeat(1, num_classes)
    for name, label in (('gt_negative', 0.0), ('gt_unknown', -1.0), ('gt_label', 1.0)):
        listed = [sample.get(name) for sample in data_samples]
        lengths = [0 if columns is None else len(columns) for columns in listed]
        if not any(lengths):
            continue
        rows = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
        columns = _concatenate(name, [columns for columns in listed if columns is not None])
        if columns.device.type == 'cpu':
            _check_range(name, columns, rows, data_samples, num_classes)
            rows, columns = _send(torch.stack((rows, columns)), device)
        else:
            rows, columns = _send(rows, device), columns.to(device)
            wrong.append(((columns < 0) | (columns >= num_classes)).any())
            columns = columns.clamp(0, num_classes - 1)
        targets[rows, columns] = label
        if weights is not None:
            weights[rows, columns] = 1.0
    for any_wrong in wrong:
        targets.masked_fill_(any_wrong, torch.nan)
    return targets, weights


@never_compiled
def index_targets(
    data_samples: Sequence[MultiLabelDataSample], num_classes: int, device: torch.device | None = None
) -> Tensor:
    """(N,) int64: the one class of each image, for losses over classes that exclude each other.

    Indices that lie on a GPU are not read back to be checked.

    Raises:
        ValueError: as of :func:`dense_targets`; or an image has no positive class, or several.
        TypeError: class indices are not integers.
    """
    _check_samples(data_samples, num_classes)
    labels = [sample.get('gt_label', torch.empty(0, dtype=torch.int64)) for sample in data_samples]
    for sample, label in zip(data_samples, labels):
        if len(label) != 1:
            raise ValueError(
                f'gt_label of {image_of(sample)} holds {len(label)} classes, but the loss is a softmax over '
                'classes of which each image has one; use AsymmetricLoss for multi-label data'
            )
    target = _concatenate('gt_label', labels)
    if target.device.type == 'cpu':
        _check_range('gt_label', target, range(len(labels)), data_samples, num_classes)
    return _send(target, torch.device('cpu' if device is None else device))


def _check_samples(data_samples: Sequence[MultiLabelDataSample], num_classes: int) -> None:
    for sample in data_samples:
        if sample.get('num_classes', num_classes) != num_classes:
            raise ValueError(
                f'the data set of {image_of(sample)} has {sample.num_classes} classes, but the head has '
                f'num_classes={num_classes}; set model.head.num_classes={sample.num_classes}'
            )
        require_ground_truth(sample)
        weight = sample.get('untagged_weight', 1.0)
        if not 0 <= weight <= 1:
            raise ValueError(f'untagged_weight={weight} of {image_of(sample)} must lie in [0, 1]')


def require_ground_truth(sample: MultiLabelDataSample | dict) -> None:
    """
    Raises:
        ValueError: nothing says what the image shows.
    """
    if all(sample.get(name) is None for name in GROUND_TRUTH):
        raise ValueError(
            f'{image_of(sample)} has no ground truth: none of {", ".join(GROUND_TRUTH)} is set. An image without any '
            'positive class has an empty gt_label'
        )


def _concatenate(name: str, columns: list[Tensor]) -> Tensor:
    indices = torch.cat(columns)
    if indices.is_floating_point() or indices.dtype == torch.bool:
        raise TypeError(f'{name} holds {indices.dtype}, but lists class indices: give it the dtype torch.int64')
    return indices.long()


def _check_range(
    name: str,
    columns: Tensor,
    rows: Sequence[int] | Tensor,
    data_samples: Sequence[MultiLabelDataSample],
    num_classes: int,
) -> None:
    wrong = ((columns < 0) | (columns >= num_classes)).nonzero()
    if len(wrong):
        first = int(wrong[0])
        sample, column = data_samples[int(rows[first])], columns[first].item()
        raise ValueError(
            f'{name} of {image_of(sample)} holds class {column}, but classes are numbered from 0 to {num_classes - 1}'
        )


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    # Only a copy from pinned memory is certain not to wait for the GPU.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == 'cuda' else tensor.to(device)


def image_of(sample: MultiLabelDataSample | dict) -> str:
    """What messages call it."""
    return sample.get('img_path') or 'a sample'
