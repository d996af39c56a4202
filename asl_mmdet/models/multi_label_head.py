"""Linear classifier on pooled features under mmpretrain's interface, with the official code's optional bottleneck."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from mmdet.utils import reduce_mean
from mmengine.dist import is_distributed
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..structures import MultiLabelDataSample, dense_targets, index_targets


@MODELS.register_module()
class MultiLabelLinearClsHead(BaseModule):
    """Scores of C classes from the last feature of backbone or neck.

    The loss is summed over classes and divided by the number of images N: C times larger than a mean over all
    elements, N times smaller than the plain sum of the official code. Adam and AdamW do not see such factors; SGD
    does, and so does a weight decay that is added to the gradient. With several processes N is the mean over them, as
    in mmdet's detectors: the average of their gradients is that of all images, also where their batches differ in
    size.

    Classes of which an image says nothing (-1 in :func:`dense_targets`) have no loss. AsymmetricLoss is given the -1;
    other losses are given label 0 with weight 0.

    A loss over classes that exclude each other (``use_sigmoid=False``: ``ASLSingleLabel``, mmdet's
    ``CrossEntropyLoss`` by its default) takes one class of each image, and predictions are a softmax then. For single
    labels under a sigmoid, as in our recipe of appendix G, give AsymmetricLoss and ``topk=1``.

    Args:
        num_classes: C.
        in_channels: channels of the feature.
        loss: config of a loss with mmdet's contract (pred, target, weight, avg_factor).
        thr: probability from which on a class is in ``pred_label``.
        topk: number of classes in ``pred_label``, used where ``thr`` is None. With neither, 0.5 is the threshold, or
            the most probable class is taken where the loss is a softmax.
        bottleneck_features: width of a linear layer, without activation, in front of the classifier; None has none. The
            official code has 512 for Open Images. The keys of ``state_dict`` are the official ones: ``fc.weight``, and
            ``fc.embedding_generator.0.weight`` and ``fc.FC.weight`` with a bottleneck.

    Raises:
        ValueError: an argument is out of its range; in the methods, features or samples do not fit the head.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        loss: dict | nn.Module = dict(type='CrossEntropyLoss', use_sigmoid=True),
        thr: float | None = None,
        topk: int | None = None,
        bottleneck_features: int | None = None,
        init_cfg: dict | list[dict] | None = dict(type='Normal', layer='Linear', std=0.01),
    ) -> None:
        super().__init__(init_cfg)
        sizes = dict(num_classes=num_classes, in_channels=in_channels, bottleneck_features=bottleneck_features)
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise ValueError(f'{name}={value} of MultiLabelLinearClsHead must be 1 or more')
        if thr is not None and not 0 <= thr <= 1:
            raise ValueError(f'thr={thr} of MultiLabelLinearClsHead is a probability and must lie in [0, 1]')
        if topk is not None and not 1 <= topk <= num_classes:
            raise ValueError(f'topk={topk} of MultiLabelLinearClsHead must lie in [1, num_classes={num_classes}]')
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.loss_module = loss if isinstance(loss, nn.Module) else MODELS.build(loss)
        if getattr(self.loss_module, 'reduction', 'mean') == 'sum':
            raise ValueError(
                f"reduction='sum' of {type(self.loss_module).__name__}: MultiLabelLinearClsHead divides the sum by the "
                "number of images, with reduction='mean'. loss_weight=N, the images of a batch, makes it the sum"
            )
        self.softmax = not getattr(self.loss_module, 'use_sigmoid', True)
        if thr is None and topk is None:
            thr, topk = (None, 1) if self.softmax else (0.5, None)
        self.thr = thr
        self.topk = topk
        if bottleneck_features is None:
            self.fc: nn.Module = nn.Linear(in_channels, num_classes)
        else:
            self.fc = nn.Sequential(
                OrderedDict(
                    embedding_generator=nn.Sequential(nn.Linear(in_channels, bottleneck_features)),
                    FC=nn.Linear(bottleneck_features, num_classes),
                )
            )

    def pre_logits(self, feats: Sequence[Tensor] | Tensor) -> Tensor:
        """(N, in_channels): the last of ``feats``, averaged over its positions where it is a feature map."""
        feature = feats if torch.is_tensor(feats) else feats[-1]
        if feature.ndim == 4:
            feature = feature.mean((2, 3))
        if feature.ndim != 2 or feature.shape[1] != self.in_channels:
            raise ValueError(
                f'in_channels={self.in_channels} of MultiLabelLinearClsHead, but the feature it is given '
                f'has the shape {tuple(feature.shape)}; set in_channels to what backbone and neck yield'
            )
        return feature

    def forward(self, feats: Sequence[Tensor] | Tensor) -> Tensor:
        """Logits (N, C)."""
        return self.fc(self.pre_logits(feats))

    def scores(self, feats: Sequence[Tensor] | Tensor) -> Tensor:
        """Probabilities (N, C) in float32 or better."""
        logits = self._precise_logits(feats)
        return logits.softmax(1) if self.softmax else logits.sigmoid()

    def loss(self, feats: Sequence[Tensor] | Tensor, data_samples: Sequence[MultiLabelDataSample], **kwargs) -> dict:
        """``dict(loss=...)``, a 0-d tensor; ``kwargs`` go to the loss module.

        Raises:
            ValueError: the samples are of another number of classes than the head, among others, see
                :func:`dense_targets`.
        """
        logits = self._precise_logits(feats)
        weight = None
        if self.softmax:
            target = index_targets(data_samples, self.num_classes, logits.device)
        else:
            target, weight = dense_targets(data_samples, self.num_classes, logits.device)
            if getattr(self.loss_module, 'ignore_index', None) != -1:
                unknown = target == -1
                weight = torch.ones_like(target) if weight is None else weight
                weight = weight.masked_fill(unknown, 0)
                target = target.masked_fill(unknown, 0)
        num_images = reduce_mean(logits.new_full((), len(logits))) if is_distributed() else len(logits)
        return dict(loss=self.loss_module(logits, target, weight, avg_factor=num_images, **kwargs))

    def predict(
        self, feats: Sequence[Tensor] | Tensor, data_samples: Sequence[MultiLabelDataSample] | None = None
    ) -> list[MultiLabelDataSample]:
        """The samples, or new ones, with ``pred_score`` (C,), probabilities, and ``pred_label`` (P,), indices."""
        scores = self.scores(feats)
        if self.thr is None:
            assert self.topk is not None  # __init__ sets one of them
            labels = scores.topk(self.topk).indices
        else:
            rows, columns = (scores >= self.thr).nonzero(as_tuple=True)
            labels = columns.split(rows.bincount(minlength=len(scores)).tolist())
        if data_samples is None:
            data_samples = [MultiLabelDataSample() for _ in scores]
        for sample, score, label in zip(data_samples, scores, labels):
            sample.set_data(dict(pred_score=score, pred_label=label))
        return list(data_samples)

    def _precise_logits(self, feats: Sequence[Tensor] | Tensor) -> Tensor:
        # Half precision has no numbers between 0.9995 and 1: confident scores would tie.
        logits = self(feats)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))
