"""Labels of images, from a config and a checkpoint."""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config, ConfigDict
from mmengine.infer import BaseInferencer
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from torch import nn

from .checkpoint import load_all_weights, read_checkpoint
from .datasets.conversion import PICTURE_SUFFIXES
from .datasets.detection import leaf_configs
from .models import ImageClassifier
from .structures import MultiLabelDataSample
from .visualization import MultiLabelVisualizer

# Score from which on an object counts in what tools/infer.py writes, and by what an exported detector says.
OBJECT_SCORE_THR = 0.3

Image = str | Path | np.ndarray


class MultiLabelInferencer(BaseInferencer):
    """Multi-label classification of images of any number and size.

    >>> inferencer = MultiLabelInferencer('config.py', 'checkpoint.pth')
    >>> inferencer('folder', batch_size=32, picture_dir='pictures')['predictions'][0]
    {'image': 'folder/a.jpg', 'labels': [{'label': 'cat', 'index': 15, 'score': 0.93}]}

    Images go through the config's test pipeline. Which classes are labels is up to the head's ``thr`` and ``topk``.
    Class names come from the checkpoint, which the Runner has written them into, else from the config's test data set.

    Args:
        config: file, or its content.
        checkpoint: local file, or its address; no code in it is run.
        device: such as 'cuda:1'; None takes a GPU where there is one.
        show_progress: draw a progress bar.

    Raises:
        FileNotFoundError: there is no such config or checkpoint.
        ValueError: the checkpoint cannot be read, or does not fit the config.
    """

    preprocess_kwargs = {'skipped'}
    visualize_kwargs = {'picture_dir', 'return_vis'}
    postprocess_kwargs = {'all_scores'}

    def __init__(
        self,
        config: str | Path | Config | dict,
        checkpoint: str | Path,
        device: str | None = None,
        show_progress: bool = True,
    ) -> None:
        init_default_scope('mmdet')
        if isinstance(config, (str, Path)):
            if not Path(config).is_file():
                raise FileNotFoundError(f'no config file {config}')
            config = Config.fromfile(config)
        super().__init__(config, str(checkpoint), device, 'mmdet', show_progress)

    def __call__(
        self,
        inputs: Image | Sequence[Image],
        return_datasamples: bool = False,
        batch_size: int = 1,
        picture_dir: str | Path | None = None,
        return_vis: bool = False,
        all_scores: bool = False,
    ) -> dict:
        """Labels of one image or of many.

        Args:
            inputs: an image file, a folder of them, an array (H, W, 3) in BGR, or a list of files and arrays.
            return_datasamples: predictions as ``MultiLabelDataSample`` instead of dicts.
            batch_size: images that go through the model together.
            picture_dir: folder for pictures with the labels written on them.
            return_vis: return the pictures as RGB arrays.
            all_scores: add the probabilities of all classes to the dicts, by name.

        Returns:
            ``predictions``: for each image that could be read and prepared, in order, a dict of ``image`` (path, or
            None for an array) and ``labels``, the most probable first: dicts of ``label``, ``index`` and ``score``.
            ``visualization``: the pictures, or an empty list. ``skipped``: for each image that could not, a dict of
            ``image`` (path, or None) and ``reason``; each is logged as well.

        Raises:
            FileNotFoundError: ``inputs`` is a single path and there is nothing.
            ValueError: ``inputs`` is a folder without images.
        """
        skipped: list[dict] = []
        results = super().__call__(
            inputs,
            return_datasamples,
            batch_size,
            skipped=skipped,
            picture_dir=picture_dir,
            return_vis=return_vis,
            all_scores=all_scores,
        )
        return dict(results, skipped=skipped)

    # -------------------------------------------------------------------------------------------------------- building

    def _init_model(self, cfg: Config, weights: str, device: str = 'cpu') -> nn.Module:
        return trained_model(cfg, weights).to(device)

    def _init_pipeline(self, cfg: Config) -> Compose:
        transforms = copy.deepcopy(cfg.test_dataloader.dataset.pipeline)
        if not transforms or transforms[0].get('type') != 'LoadImageFromFile':
            raise ValueError('test_dataloader.dataset.pipeline must begin with LoadImageFromFile')
        transforms[0]['type'] = 'mmdet.InferencerLoader'
        return Compose(transforms)

    def _init_visualizer(self, cfg: Config) -> MultiLabelVisualizer:
        visualizer = MultiLabelVisualizer('inferencer')
        visualizer.dataset_meta = self.model.dataset_meta
        return visualizer

    # ---------------------------------------------------------------------------------------------------- what is done

    def _inputs_to_list(self, inputs: Image | Sequence[Image]) -> list[str | np.ndarray]:
        if isinstance(inputs, (str, Path)):
            return [*image_files(inputs)]
        inputs = [inputs] if isinstance(inputs, np.ndarray) else list(inputs)
        return [str(image) if isinstance(image, Path) else image for image in inputs]

    def preprocess(self, inputs: list[str | np.ndarray], batch_size: int = 1, *, skipped: list[dict]) -> '_Batches':
        return _Batches(partial(self._batch, inputs, skipped), range(0, len(inputs), batch_size))

    def _batch(self, inputs: list[str | np.ndarray], skipped: list[dict], indices: range) -> dict | None:
        batch = []
        for index in indices:
            image = inputs[index]
            try:
                if isinstance(image, np.ndarray) and (image.ndim != 3 or image.shape[2] != 3):
                    raise ValueError(f'the array has the shape {image.shape}, but (H, W, 3) in BGR is wanted')
                loaded = self.pipeline(image)
                reason = 'nothing was read'
            except MemoryError:
                raise
            except Exception as error:
                loaded = None
                reason = ' '.join(str(error).split()) or type(error).__name__
            if loaded is None:
                path = image if isinstance(image, str) else None
                skipped.append(dict(image=path, reason=reason))
                print_log(
                    f'{path or f"array no. {index}"} cannot be read or prepared and is left out: {reason}',
                    'current',
                    logging.WARNING,
                )
                continue
            loaded['data_samples'].set_metainfo(dict(input_index=index))
            batch.append(loaded)
        return self.collate_fn(batch) if batch else None

    @torch.no_grad()
    def forward(self, inputs: dict | None) -> list[MultiLabelDataSample]:
        return [] if inputs is None else [sample.cpu() for sample in self.model.test_step(inputs)]

    def visualize(
        self,
        inputs: list[str | np.ndarray],
        preds: list[MultiLabelDataSample],
        picture_dir: str | Path | None = None,
        return_vis: bool = False,
    ) -> list[np.ndarray]:
        pictures: list[np.ndarray] = []
        if picture_dir is None and not return_vis:
            return pictures
        names = set()
        for sample in preds:
            image = inputs[sample.input_index]
            out_file = None
            if picture_dir is not None:
                name = Path(image).name if isinstance(image, str) else f'{sample.input_index:08}.jpg'
                name = name if name not in names else f'{sample.input_index:08}_{name}'
                names.add(name)
                out_file = str(Path(picture_dir) / name)
            rgb = mmcv.imread(image)[..., ::-1] if isinstance(image, str) else image[..., ::-1]
            picture = self.visualizer.add_datasample('', np.ascontiguousarray(rgb), sample, out_file=out_file)
            if return_vis:
                pictures.append(picture)
        return pictures

    def postprocess(
        self,
        preds: list[MultiLabelDataSample],
        visualization: list[np.ndarray],
        return_datasamples: bool = False,
        all_scores: bool = False,
    ) -> dict:
        if not return_datasamples:
            preds = [self._as_dict(sample, all_scores) for sample in preds]
        return dict(predictions=preds, visualization=visualization)

    def _as_dict(self, sample: MultiLabelDataSample, all_scores: bool) -> dict:
        classes, scores = self.model.dataset_meta['classes'], sample.pred_score.tolist()
        labels = sorted(sample.pred_label.tolist(), key=lambda label: -scores[label])
        result = dict(
            image=sample.get('img_path'),
            labels=[dict(label=classes[label], index=label, score=scores[label]) for label in labels],
        )
        return dict(result, scores=dict(zip(classes, scores))) if all_scores else result


class _Batches:
    """Batches that are loaded one after the other, and know their number: a progress bar wants that."""

    def __init__(self, load: Callable, starts: range) -> None:
        self.load, self.starts = load, starts

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[dict | None]:
        for start in self.starts:
            yield self.load(range(start, min(start + self.starts.step, self.starts.stop)))


def image_files(path: str | Path) -> list[str]:
    """The image files of a folder, by name, or the one file that ``path`` is. Subfolders are named in the log.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: the folder has no images.
    """
    path = Path(path)
    if path.is_file():
        return [str(path)]
    if not path.is_dir():
        raise FileNotFoundError(f'there is no image or folder {path}')
    files = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES)
    folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
    passed_over = (
        f'{len(folders)} subfolders are passed over: {", ".join(folders[:5])}{" ..." if len(folders) > 5 else ""}'
    )
    if not files:
        raise ValueError(
            f'the folder {path} has no images ({", ".join(PICTURE_SUFFIXES)})'
            + (f'; {passed_over}. Give one of them' if folders else '')
        )
    if folders:
        print_log(f'{path}: {passed_over}', 'current', logging.WARNING)
    return files


def trained_model(config: Config, checkpoint: str | Path) -> nn.Module:
    """The classifier or dense detector of a config with a checkpoint's weights, in eval mode, on the CPU.

    Its ``dataset_meta['classes']`` are those of the checkpoint, which the Runner has written them into, else of the
    config's test data set, else numbers.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the checkpoint cannot be read, does not fit the model, or names another number of classes; the
            model is of another kind.
    """
    content = read_checkpoint(checkpoint)
    model = revert_sync_batchnorm(MODELS.build(config.model))
    head = next((name for name in ('head', 'bbox_head') if hasattr(model, name)), None)
    if head is None:
        raise ValueError(f'model.type={config.model.type} is neither an ImageClassifier nor a dense detector')
    load_all_weights(model, content, checkpoint)
    num_classes = getattr(model, head).num_classes
    meta = content.get('meta', {}).get('dataset_meta', {})
    classes, source = meta.get('classes'), f"'{checkpoint}'"
    if not classes:
        classes, source = classes_of(config.test_dataloader.dataset), 'test_dataloader.dataset'
    if not classes:
        print_log(
            f"Neither '{checkpoint}' nor the config names the classes; they are called by their numbers",
            'current',
            logging.WARNING,
        )
        classes = [f'class {i}' for i in range(num_classes)]
    if len(classes) != num_classes:
        raise ValueError(
            f'{source} names {len(classes)} classes, but the config has model.{head}.num_classes={num_classes}'
        )
    model.dataset_meta = dict(meta, classes=tuple(classes))
    return model.eval()


def is_classifier(config: Config, path: str | Path) -> bool:
    """Whether the model of the config ``path`` is an ``ImageClassifier``.

    Raises:
        ValueError: it has none, or one of a type that is not registered.
    """
    kind = (config.get('model') or {}).get('type')
    model = MODELS.get(kind) if isinstance(kind, str) else kind
    if model is None:
        raise ValueError(f'{path}: there is no model of type {kind}' if kind else f'{path} has no model')
    return issubclass(model, ImageClassifier)


def classes_of(dataset: ConfigDict) -> Sequence[str] | None:
    """Of a data set that is not built, or of the first within a wrapper, as it reads its ``metainfo``."""
    first = next(leaf_configs(dataset))
    kind, metainfo = first.get('type'), first.get('metainfo')
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    return (kind._load_metainfo(metainfo) if hasattr(kind, '_load_metainfo') else metainfo or {}).get('classes')
