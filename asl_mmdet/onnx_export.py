"""Trained models as ONNX files that need nothing beside them: NMS is in the graph, classes and preprocessing are in the
metadata. Shapes: N images of H x W pixels, C classes, A priors at each of P positions of a level, K candidates."""

import copy
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import mmcv.transforms
import mmdet.datasets.transforms
import torch
import torch.nn.functional as F
from mmcv.ops import nms
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs
from mmdet.models import DetDataPreprocessor, SingleStageDetector
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.registry import TRANSFORMS
from mmengine.config import Config
from mmengine.model import ImgDataPreprocessor
from torch import Tensor, nn
from torch.export import Dim

from .datasets import LoadNamedImage
from .datasets.formatting import PackMultiLabelInputs
from .fast_inference import fast_inference
from .inferencer import OBJECT_SCORE_THR
from .models import ImageClassifier

OPSET = 18  # the lowest of torch's exporter

# ------------------------------------------------------------------------------------------------ graphs of the models


@torch.library.custom_op('asl_mmdet::kept_by_nms', mutates_args=())
def kept_by_nms(boxes: Tensor, scores: Tensor, iou_threshold: float, most: int) -> Tensor:
    """(N, K), True for the candidates that non-maximum suppression keeps in each image, ``most`` at most.

    Args:
        boxes: (N, K, 4), corners.
        scores: (N, K); 0 and less are no candidates.
    """
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for mask, box, score in zip(kept, boxes, scores):
        candidates = (score > 0).nonzero().squeeze(1)
        mask[candidates[nms(box[candidates], score[candidates], iou_threshold, max_num=most)[1]]] = True
    return kept


@kept_by_nms.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, most: int) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def _kept_by_nms_in_onnx(boxes, scores, iou_threshold: float, most: int):
    from onnx import TensorProto, helper
    from onnxscript import opset18 as op

    def filled(shape, value: bool):
        return op.ConstantOfShape(shape, value=helper.make_tensor('value', TensorProto.BOOL, [1], [value]))

    selected = op.NonMaxSuppression(
        boxes,
        op.Unsqueeze(scores, op.Constant(value_ints=[1])),
        op.Constant(value_int=most),
        op.Constant(value_float=iou_threshold),
        op.Constant(value_float=0.0),
    )  # (number, 3): image, class, candidate
    places = op.Gather(selected, op.Constant(value_ints=[0, 2]), axis=1)
    return op.ScatterND(filled(op.Shape(scores), False), places, filled(op.Shape(selected, end=1), True))


class ScoringGraph(nn.Module):
    """Images (N, 3, H, W), preprocessed, to probabilities (N, C) of an ``ImageClassifier``."""

    inputs, outputs = ('image',), ('scores',)

    def __init__(self, model: ImageClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return self.model.head.scores(self.model.extract_feat(image))


class DetectionGraph(nn.Module):
    """mmdet's prediction of a dense head, with tensors of fixed size: what is absent has score 0 and label -1.

    ``forward`` takes images (N, 3, H, W), preprocessed and padded, and for each its height and width without padding,
    (N, 2) integers. It returns boxes (N, K, 4), corners x1, y1, x2, y2 in pixels of the padded image, scores (N, K) and
    labels (N, K), K = ``max_per_img``, the highest scores first.

    Raises:
        ValueError: the model predicts in another way.
    """

    inputs, outputs = ('image', 'image_size'), ('boxes', 'scores', 'labels')

    def __init__(self, model: SingleStageDetector) -> None:
        super().__init__()
        head = model.bbox_head
        for name in ('predict', 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process'):
            if getattr(type(head), name, None) is not getattr(BaseDenseHead, name):
                raise ValueError(
                    f'model.bbox_head.type={type(head).__name__} predicts in a way of its own; FCOSHead, ATSSHead and '
                    'others that share the prediction of BaseDenseHead can be exported'
                )
        if not head.use_sigmoid_cls:
            raise ValueError('model.bbox_head.loss_cls.use_sigmoid=False: only heads with a sigmoid can be exported')
        cfg = head.test_cfg
        suppression = dict(cfg.nms)
        self.iou_threshold = suppression.pop('iou_threshold', None)
        if self.iou_threshold is None or suppression.pop('type', 'nms') != 'nms' or suppression:
            raise ValueError(
                f'model.test_cfg.nms={dict(cfg.nms)} cannot be exported: dict(type="nms", iou_threshold=...) can'
            )
        if cfg.get('nms_pre', -1) < 1 or cfg.get('max_per_img', -1) < 1 or cfg.get('min_bbox_size', -1) > 0:
            raise ValueError(
                f'model.test_cfg={dict(cfg)} cannot be exported: nms_pre and max_per_img have to be 1 or more, and '
                'min_bbox_size at most 0'
            )
        self.model = model
        self.score_thr = cfg.get('score_thr', 0)
        self.nms_pre = cfg.nms_pre
        self.max_per_img = cfg.max_per_img
        self.without_empty = cfg.get('min_bbox_size', -1) == 0

    def forward(self, image: Tensor, image_size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        head = self.model.bbox_head
        maps = head(self.model.extract_feat(image))
        sizes = [scores.shape[-2:] for scores in maps[0]]
        priors = head.prior_generator.grid_priors(sizes, dtype=image.dtype, device=image.device)
        levels = [self._candidates(*level) for level in zip(priors, *maps)]
        boxes, scores, labels = (torch.cat(parts, 1) for parts in zip(*levels))
        if getattr(head.bbox_coder, 'clip_border', True):
            width_height = image_size.flip(1).to(boxes)[:, None]  # (N, 1, 2)
            boxes = boxes.clamp(min=0).minimum(width_height.repeat(1, 1, 2))
        if self.without_empty:
            scores = scores.where((boxes[..., 2:] > boxes[..., :2]).all(2), 0)
        # As in mmcv's batched_nms: boxes of different classes are moved so far apart that they cannot overlap.
        extent = boxes.where(scores[..., None] > 0, 0).amax((1, 2), keepdim=True) + 1
        kept = kept_by_nms(boxes + labels[..., None] * extent, scores, self.iou_threshold, self.max_per_img)
        scores, order = scores.where(kept, 0).topk(min(self.max_per_img, scores.shape[1]))
        found = scores > 0
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4)).where(found[..., None], 0)
        return boxes, scores, labels.gather(1, order).where(found, -1)

    def _candidates(self, priors: Tensor, logits: Tensor, deltas: Tensor, factors: Tensor | None = None):
        """The ``nms_pre`` highest scores of a level: boxes (N, K, 4), scores and labels (N, K).

        Args:
            priors: (P A, 2 or 4).
            logits, deltas, factors: (N, A C or A 4 or A, height, width).
        """
        coder, num_classes = self.model.bbox_head.bbox_coder, self.model.bbox_head.cls_out_channels
        probabilities = logits.permute(0, 2, 3, 1).flatten(1).sigmoid()
        # A small map has fewer than nms_pre: zeros fill up.
        filled = F.pad(probabilities.where(probabilities > self.score_thr, 0), (0, self.nms_pre))
        scores, order = filled.topk(self.nms_pre)
        order = order.where(scores > 0, 0)
        labels, places = order % num_classes, order // num_classes
        deltas = deltas.permute(0, 2, 3, 1).reshape(deltas.shape[0], -1, coder.encode_size)
        deltas = deltas.gather(1, places[..., None].expand(-1, -1, coder.encode_size))
        if factors is not None:
            scores = scores * factors.permute(0, 2, 3, 1).flatten(1).sigmoid().gather(1, places)
        boxes = coder.decode(priors[places.flatten()], deltas.flatten(0, 1))
        return boxes.view(-1, self.nms_pre, 4), scores, labels


# ------------------------------------------------------------------------------------------------------------ metadata


def preprocessing(pipeline: Sequence[dict], data_preprocessor: nn.Module) -> dict:
    """What is done to a picture before it goes into the graph, in this order, as JSON can hold it.

    ``resize``: null, or ``width`` and ``height`` for bilinear interpolation; with ``keep_ratio`` the picture becomes as
    large as fits into them, or into the same turned by 90 degrees. ``channels``: 'RGB' or 'BGR', values of 0 to 255.
    ``mean``, ``std``: subtracted, then divided by, in the order of the channels. ``pad_divisor``: height and width are
    padded with ``pad_value``, at the bottom and at the right, to multiples of it.

    Args:
        pipeline: of the test data set.

    Raises:
        ValueError: pipeline or preprocessor do something else.
    """
    resize = None
    for cfg in pipeline:
        transform = TRANSFORMS.build(cfg)
        if isinstance(transform, (LoadAnnotations, PackDetInputs, PackMultiLabelInputs)):
            continue
        if type(transform) in (mmcv.transforms.LoadImageFromFile, LoadNamedImage):
            plain = (transform.color_type, transform.imdecode_backend, transform.to_float32) == ('color', 'cv2', False)
        elif type(transform) in (mmcv.transforms.Resize, mmdet.datasets.transforms.Resize):
            plain = resize is None and transform.scale is not None
            plain = plain and (transform.interpolation, transform.backend) == ('bilinear', 'cv2')
            resize = transform
        else:
            plain = False
        if not plain:
            raise ValueError(
                f'test_dataloader.dataset.pipeline has {dict(cfg)}, which the metadata of an exported file do not '
                'express: give it LoadImageFromFile, at most one Resize (scale, keep_ratio), annotations and Pack...'
            )
    if type(data_preprocessor) not in (DetDataPreprocessor, ImgDataPreprocessor):
        raise ValueError(
            f'model.data_preprocessor.type={type(data_preprocessor).__name__}, which the metadata of an exported file '
            'do not express: give it DetDataPreprocessor'
        )
    normalises = data_preprocessor._enable_normalize
    return dict(
        resize=resize and dict(width=resize.scale[0], height=resize.scale[1], keep_ratio=resize.keep_ratio),
        channels='RGB' if data_preprocessor._channel_conversion else 'BGR',
        mean=data_preprocessor.mean.flatten().tolist() if normalises else [0.0] * 3,
        std=data_preprocessor.std.flatten().tolist() if normalises else [1.0] * 3,
        pad_divisor=data_preprocessor.pad_size_divisor,
        pad_value=data_preprocessor.pad_value,
    )


def export_onnx(config: Config, model: nn.Module, path: str | Path, score_thr: float | None = None) -> None:
    """Write a classifier, or a detector with a dense head, for any batch and image size, with BN folded.

    The metadata are JSON, by key: ``task`` ('classification' or 'detection'), ``classes``, ``preprocessing`` as of
    :func:`preprocessing`, ``score_thr``, from which on a class or an object counts, for classifiers ``topk``, how many
    classes count where ``score_thr`` is null, and for detectors ``test_cfg``, the settings that are in the graph.

    Args:
        config: what the model was built from; its test pipeline is read.
        model: as :func:`~asl_mmdet.inferencer.trained_model` returns it; it stays as it is.
        score_thr: None takes the head's ``thr``, for detectors :data:`~asl_mmdet.inferencer.OBJECT_SCORE_THR`.

    Raises:
        ValueError: the model, its test settings or its preprocessing cannot be exported.
        ImportError: onnx or onnxscript is missing.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError('exporting needs onnxscript: pip install onnx onnxscript') from error
    steps = preprocessing(config.test_dataloader.dataset.pipeline, model.data_preprocessor)
    about = dict(classes=model.dataset_meta['classes'], preprocessing=steps)
    model = fast_inference(copy.deepcopy(model))
    if isinstance(model, ImageClassifier):
        graph = ScoringGraph(model)
        score_thr = model.head.thr if score_thr is None else score_thr
        about |= dict(task='classification', score_thr=score_thr, topk=model.head.topk if score_thr is None else None)
    else:
        graph = DetectionGraph(model)
        test_cfg = {key: getattr(graph, key) for key in ('score_thr', 'nms_pre', 'iou_threshold', 'max_per_img')}
        score_thr = OBJECT_SCORE_THR if score_thr is None else score_thr
        about |= dict(task='detection', score_thr=score_thr, test_cfg=test_cfg)

    # Large enough for two places in each feature map: torch takes the sizes 0 and 1 for constants.
    examples = dict(image=torch.zeros(2, 3, 384, 512), image_size=torch.tensor([[384, 512]] * 2))
    axes = dict(image={0: 'batch', 2: 'height', 3: 'width'}, image_size={0: 'batch'})
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        program = torch.export.export(
            graph,
            tuple(examples[name] for name in graph.inputs),
            dynamic_shapes=tuple(dict.fromkeys(axes[name], Dim.DYNAMIC) for name in graph.inputs),
        )
        onnx = torch.onnx.export(
            program,
            input_names=graph.inputs,
            output_names=graph.outputs,
            dynamic_shapes=tuple(axes[name] for name in graph.inputs),
            opset_version=OPSET,
            custom_translation_table={torch.ops.asl_mmdet.kept_by_nms.default: _kept_by_nms_in_onnx},
            verbose=False,
        )
    onnx.model.metadata_props.update({key: json.dumps(value, ensure_ascii=False) for key, value in about.items()})
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(path, external_data=False)
