"""Images to class probabilities, as one model for mmengine's Runner."""

from collections.abc import Sequence

from mmdet.registry import MODELS
from mmengine.model import BaseModel
from torch import Tensor, nn

from ..structures import MultiLabelDataSample


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """Backbone, optional neck and classification head; mmpretrain's ``ImageClassifier`` for mmdet's registry.

    Args:
        backbone: config of any mmdet backbone, a module that maps (N, 3, H, W) to a tuple of features.
        head: config of a head with ``loss(feats, data_samples)``, ``predict(feats, data_samples)`` and a ``forward``
            that returns logits, such as :class:`MultiLabelLinearClsHead`.
        neck: config of a module from tuple to tuple, such as mmdet's ``GlobalAveragePooling``. None hands the
            features to the head as they are; :class:`MultiLabelLinearClsHead` averages maps by itself.
        data_preprocessor: config of mmdet's ``DetDataPreprocessor`` or another. By default BGR pixels of 0 to 255
            become RGB of 0 to 1, without ImageNet's mean and standard deviation (appendix B). A config without
            ``type`` states differences from that default.
    """

    PIXELS = dict(type='DetDataPreprocessor', mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0], bgr_to_rgb=True)

    def __init__(
        self,
        backbone: dict,
        head: dict,
        neck: dict | None = None,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        if not isinstance(data_preprocessor, nn.Module):
            cfg = data_preprocessor or {}
            data_preprocessor = MODELS.build(cfg if 'type' in cfg else {**self.PIXELS, **cfg})
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = MODELS.build(backbone)
        self.neck = None if neck is None else MODELS.build(neck)
        self.head = MODELS.build(head)

    def extract_feat(self, inputs: Tensor, stage: str = 'neck') -> tuple[Tensor, ...] | Tensor:
        """Features of a batch of preprocessed images (N, 3, H, W).

        Args:
            stage: 'backbone' and 'neck' return a tuple of features, 'pre_logits' the (N, in_channels) that the head's
                linear layer is given.
        """
        if stage not in ('backbone', 'neck', 'pre_logits'):
            raise ValueError(f"stage={stage!r} of extract_feat must be 'backbone', 'neck' or 'pre_logits'")
        feats = self.backbone(inputs)
        if stage != 'backbone' and self.neck is not None:
            feats = self.neck(feats)
        return self.head.pre_logits(feats) if stage == 'pre_logits' else feats

    def forward(
        self, inputs: Tensor, data_samples: Sequence[MultiLabelDataSample] | None = None, mode: str = 'tensor'
    ) -> Tensor | dict | list[MultiLabelDataSample]:
        """Logits (N, C) in mode 'tensor', a dict of losses in 'loss', samples with predictions in 'predict'.

        Args:
            inputs: (N, 3, H, W) as the data preprocessor yields them.
        """
        if mode not in ('tensor', 'loss', 'predict'):
            raise RuntimeError(f"mode={mode!r} of ImageClassifier must be 'tensor', 'loss' or 'predict'")
        feats = self.extract_feat(inputs)
        if mode == 'tensor':
            return self.head(feats)
        return self.head.loss(feats, data_samples) if mode == 'loss' else self.head.predict(feats, data_samples)
