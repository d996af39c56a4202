"""Objects in images, from a config and a checkpoint."""

from mmdet.apis import DetInferencer
from mmengine.config import Config
from mmengine.visualization import Visualizer
from torch import nn

from .inferencer import classes_of


class DetectorInferencer(DetInferencer):
    """mmdet's, but classes that a checkpoint does not name are those of the config's test data set, not of COCO, and
    pictures are returned alone, not stored by the visualizer's backends as well, which have no folder here."""

    def _init_visualizer(self, cfg: Config) -> Visualizer | None:
        if cfg.get('visualizer'):
            cfg.visualizer.pop('vis_backends', None)
        return super()._init_visualizer(cfg)

    def _load_weights_to_model(self, model: nn.Module, checkpoint: dict | None, cfg: Config) -> None:
        if checkpoint is not None and (classes := classes_of(cfg.test_dataloader.dataset)):
            if 'state_dict' not in checkpoint:
                checkpoint = dict(state_dict=checkpoint)
            meta = checkpoint.get('meta', {})
            if not meta.get('dataset_meta', {}).get('classes') and 'CLASSES' not in meta:
                meta = dict(meta, dataset_meta=dict(meta.get('dataset_meta', {}), classes=tuple(classes)))
            checkpoint = dict(checkpoint, meta=meta)
        super()._load_weights_to_model(model, checkpoint, cfg)
