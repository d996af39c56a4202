"""Objects in images, from a config and a checkpoint."""

from mmdet.apis import DetInferencer
from mmengine.config import Config
from mmengine.visualization import Visualizer
from torch import nn

from .checkpoint import load_all_weights
from .inferencer import classes_of


class DetectorInferencer(DetInferencer):
    """mmdet's, but a checkpoint that leaves weights at random is refused, classes that it does not name are those of
    the config's test data set, not of COCO, and pictures are returned alone, not stored by the visualizer's backends as
    well, which have no folder here.

    Raises:
        CheckpointError: the checkpoint does not fit the model.
    """

    def _init_model(self, cfg: Config, weights: str, device: str = 'cpu') -> nn.Module:
        self.weights = weights
        return super()._init_model(cfg, weights, device)

    def _init_visualizer(self, cfg: Config) -> Visualizer | None:
        if cfg.get('visualizer'):
            cfg.visualizer.pop('vis_backends', None)
        return super()._init_visualizer(cfg)

    def _load_weights_to_model(self, model: nn.Module, checkpoint: dict, cfg: Config) -> None:
        load_all_weights(model, checkpoint, self.weights)
        meta = checkpoint.get('meta', {})
        named = meta.get('dataset_meta', {}).get('classes') or 'CLASSES' in meta
        if not named and (classes := classes_of(cfg.test_dataloader.dataset)):
            meta = dict(meta, dataset_meta=dict(meta.get('dataset_meta', {}), classes=tuple(classes)))
            checkpoint = dict(state_dict=checkpoint.get('state_dict', checkpoint), meta=meta)
        super()._load_weights_to_model(model, checkpoint, cfg)
