"""From the pipeline's dict to what the model takes."""

from collections.abc import Sequence

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS

from ..structures import GROUND_TRUTH, MultiLabelDataSample


@TRANSFORMS.register_module()
class PackMultiLabelInputs(BaseTransform):
    """Last transform of a multi-label pipeline.

    Takes ``img`` (H, W, 3) or (H, W), and of ``gt_label``, ``gt_negative`` and ``gt_unknown`` (arrays of class indices)
    what there is. Gives ``inputs``, a (C, H, W) tensor of the image's type, uint8 unless the pipeline made it another,
    and ``data_samples``, a ``MultiLabelDataSample`` with int64 tensors. Its metainfo holds ``num_classes`` and
    ``untagged_weight`` where the data set gives them, and ``meta_keys``, as in mmdet's ``PackDetInputs``.
    """

    def __init__(
        self,
        meta_keys: Sequence[str] = (
            'img_id',
            'img_path',
            'ori_shape',
            'img_shape',
            'scale_factor',
            'flip',
            'flip_direction',
        ),
    ):
        self.meta_keys = tuple(meta_keys)

    def transform(self, results: dict) -> dict:
        sample = MultiLabelDataSample(
            metainfo={
                key: results[key] for key in ('num_classes', 'untagged_weight', *self.meta_keys) if key in results
            }
        )
        for key in GROUND_TRUTH:
            if key in results:
                sample.set_field(torch.as_tensor(np.asarray(results[key], dtype=np.int64)), key)
        packed = dict(data_samples=sample)
        if 'img' in results:
            image = results['img'] if results['img'].ndim == 3 else results['img'][..., None]
            packed['inputs'] = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).contiguous()
        return packed

    def __repr__(self) -> str:
        return f'{type(self).__name__}(meta_keys={self.meta_keys})'
