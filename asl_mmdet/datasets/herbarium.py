"""Herbarium 2020 (FGVC7): one species per image (appendix G)."""

from collections import Counter

import numpy as np
from mmdet.registry import DATASETS

from .coco import coco_arrays, read_coco_json
from .label_index import AnnotationError, LabelIndex, Ragged
from .multi_label import MultiLabelDataset


@DATASETS.register_module()
class HerbariumDataset(MultiLabelDataset):
    """``train/metadata.json`` of the competition (https://www.kaggle.com/c/herbarium-2020-fgvc7), in COCO's format::

        {"images": [{"id": 354106, "file_name": "images/156/72/354106.jpg", ...}],
         "annotations": [{"id": 354106, "image_id": 354106, "category_id": 15672, "region_id": 1}],
         "categories": [{"id": 15672, "name": "...", "genus": "...", "family": "..."}]}

    32,093 classes in the order of the category ids; species that share a name get their id behind it. Every image has
    exactly one. The labels of the test images are not public; ``holdout`` makes a validation part. The other arguments
    are those of ``MultiLabelDataset``.
    """

    def __init__(self, ann_file: str = 'train/metadata.json', data_prefix: dict = dict(img_path='train'), **kwargs):
        super().__init__(ann_file, data_prefix=data_prefix, **kwargs)

    def read_index(self) -> LabelIndex:
        return self.read_through_cache(self._parse, [self.ann_file], format='herbarium')

    def _parse(self):
        content = read_coco_json(self.ann_file)
        named = [entry for entry in content['categories'] if isinstance(entry.get('name'), str)]
        count_of_name = Counter(entry['name'] for entry in named)
        for entry in named:
            if count_of_name[entry['name']] > 1:
                entry['name'] = f'{entry["name"]} ({entry.get("id")})'
        classes, names, ids, rows, columns = coco_arrays(content, self.ann_file)
        counts = np.bincount(np.asarray(rows, dtype=np.int64), minlength=len(names))
        wrong = np.flatnonzero(counts != 1)
        if len(wrong):
            raise AnnotationError(
                f'{self.ann_file}: {len(wrong):,} images do not have exactly one annotation, such as '
                f'{names[wrong[0]].decode()!r} with {counts[wrong[0]]}'
            )
        labels = Ragged.from_pairs(rows, columns, len(names), len(classes))
        return LabelIndex(names, classes, dict(gt_label=labels), ids)
