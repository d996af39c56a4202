"""Draw what the network sees: images after augmentation and the model's data preprocessor, with their labels or boxes.

Normalization is undone for the eye, channels are put in the order red, green, blue, and small images are enlarged.
"""

import argparse
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import mmcv
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from mmengine.visualization.utils import img_from_canvas

from asl_mmdet.command_line import add_cfg_options, exit_on_known_faults, folder_to_write, positive, read_config
from asl_mmdet.datasets.detection import guard_detection_data
from asl_mmdet.hooks.exact_resume_hook import seed_from
from asl_mmdet.progress import track
from asl_mmdet.visualization import MultiLabelVisualizer, TextOfAnyScript, font_families

COLUMNS = 5
SHEET_ROWS = 4


class BoxVisualizer(TextOfAnyScript, DetLocalVisualizer):
    pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('--split', choices=('train', 'val', 'test'), default='train')
    parser.add_argument(
        '--out', type=folder_to_write, help='folder (default: work_dirs/<name of the config>/browse_<split>)'
    )
    parser.add_argument('-n', type=positive, default=20, help='so many images, evenly spread over the data set')
    parser.add_argument('--index', type=int, nargs='+', help='these images, counted from 0, instead')
    parser.add_argument('--repeat', type=positive, default=1, help='so many augmentations of each')
    parser.add_argument('--seed', type=int, default=0, help='of the augmentation')
    add_cfg_options(parser)
    args = parser.parse_args()
    cfg = read_config(args.config, args.cfg_options)
    if not cfg.get(f'{args.split}_dataloader'):
        parser.error(f'{args.config} has no {args.split}_dataloader')
    out = args.out or Path('work_dirs', Path(args.config).stem, f'browse_{args.split}')
    with exit_on_known_faults():
        browse(cfg, args.split, out, args.n, args.index, args.repeat, args.seed)


def browse(
    cfg: Config, split: str, out: Path, number: int, indices: Sequence[int] | None, repeat: int, seed: int
) -> None:
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    loader_cfg = cfg[f'{split}_dataloader']
    guard_detection_data(loader_cfg, [], cfg.get('allow_outside', False))
    loader = Runner.build_dataloader(dict(loader_cfg, num_workers=0, persistent_workers=False))
    dataset = loader.dataset
    if indices is None:
        indices = np.unique(np.linspace(0, len(dataset) - 1, number).round().astype(int)).tolist()
    wrong = [index for index in indices if not 0 <= index < len(dataset)]
    if wrong:
        sys.exit(f'--index {wrong[0]}: the {split} data set has {len(dataset):,} images, counted from 0')
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    preprocessor = MODELS.build(cfg.model).data_preprocessor
    if not isinstance(preprocessor, ImgDataPreprocessor):
        sys.exit(
            f'the data preprocessor is a {type(preprocessor).__name__}, and only an ImgDataPreprocessor can be undone'
        )

    meta, visualizers = getattr(dataset, 'metainfo', {}), {}
    pictures, stretched = [], 0
    for index in track(indices, 'Pictures'):
        for turn in range(repeat):
            seed_from(seed, index, turn)
            data = preprocessor(loader.collate_fn([dataset[index]]), split == 'train')
            image, is_stretched = displayed(data['inputs'][0], preprocessor)
            stretched += is_stretched
            sample = data['data_samples'][0]
            name = (
                f'{index:06d}' + (f'_{turn}' if repeat > 1 else '') + f'_{Path(sample.get("img_path") or "image").stem}'
            )
            draw = draw_boxes if isinstance(sample, DetDataSample) else draw_labels
            with warnings.catch_warnings():
                # A box that ends with the image is out of bounds to mmengine.
                warnings.filterwarnings('ignore', '.*out of bounds')
                picture = draw(visualizers, meta, image, sample)
            mmcv.imwrite(picture[..., ::-1], str(out / f'{name}.png'))
            size = f'{image.shape[1]} x {image.shape[0]}'
            words = labels_in_words(sample, meta.get('classes') or ())
            print(f'{name}  {size}  {words}')
            pictures.append((f'{name}\n{size}\n{textwrap.shorten(words, 45, placeholder=" ...")}', picture))
    columns = repeat if repeat > 1 else COLUMNS
    for i, start in enumerate(range(0, len(pictures), columns * SHEET_ROWS), 1):
        mmcv.imwrite(
            contact_sheet(pictures[start : start + columns * SHEET_ROWS], columns)[..., ::-1],
            str(out / f'sheet_{i}.png'),
        )
    if stretched:
        print(
            f'{stretched} images do not lie in 0 to 255 when the data preprocessor is undone: the pipeline normalizes, '
            'too; they are drawn from their darkest to their brightest'
        )
    print(f'{len(pictures)} pictures of {len(dataset):,} images of {split} and {i} sheets are in {out}')


def displayed(inputs: torch.Tensor, preprocessor: ImgDataPreprocessor) -> tuple[np.ndarray, bool]:
    """(H, W, 3) uint8 RGB from (C, H, W) as the model gets it; whether its range had to be stretched."""
    pixels = inputs.float()
    if preprocessor._enable_normalize:
        pixels = pixels * preprocessor.std + preprocessor.mean
    # mmcv loads blue, green, red, and the preprocessor turns it round where it is told to, in either direction.
    if len(pixels) == 3 and not preprocessor._channel_conversion:
        pixels = pixels.flip(0)
    low, high = pixels.min().item(), pixels.max().item()
    stretched = low < -1 or high > 256 or 0 < high <= 1
    if stretched:
        pixels = (pixels - low) * (255 / max(high - low, 1e-6))
    pixels = pixels.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3))), stretched


def draw_labels(visualizers: dict, meta: dict, image: np.ndarray, sample: BaseDataElement) -> np.ndarray:
    visualizer = visualizers.setdefault('labels', MultiLabelVisualizer())
    visualizer.dataset_meta = meta
    return visualizer.add_datasample('', image, sample, draw_pred=False)


def draw_boxes(visualizers: dict, meta: dict, image: np.ndarray, sample: DetDataSample) -> np.ndarray:
    """Regions that the loss ignores are dashed and white."""
    visualizer = visualizers.setdefault('boxes', BoxVisualizer())
    classes, palette = meta.get('classes') or (), meta.get('palette')
    fits = isinstance(palette, list) and len(palette) >= len(classes)
    visualizer.dataset_meta = dict(classes=classes or None, palette=palette if fits else None)
    scale = MultiLabelVisualizer.MINIMUM_SIZE / max(image.shape[:2])
    objects, ignored = (sample.get(name) for name in ('gt_instances', 'ignored_instances'))
    if scale > 1 and 'masks' not in (objects or ()):
        image = mmcv.imrescale(image, scale)
        for instances in filter(None, (objects, ignored)):
            if 'bboxes' in instances:
                instances.bboxes = _corners(instances) * scale
    picture = visualizer.add_datasample('', image, sample, draw_pred=False)
    if picture is None:
        picture = visualizer.get_image()
    if ignored is not None and len(ignored):
        visualizer.set_image(picture)
        visualizer.draw_bboxes(_corners(ignored), edge_colors='white', line_styles='--')
        picture = visualizer.get_image()
    return picture


def _corners(instances) -> torch.Tensor:
    """(N, 4): left, top, right, bottom."""
    boxes = instances.bboxes
    return boxes if torch.is_tensor(boxes) else boxes.tensor


def labels_in_words(sample: BaseDataElement, classes: Sequence[str]) -> str:
    def name(label):
        return classes[label] if label < len(classes) else f'class {label}'

    if isinstance(sample, DetDataSample):
        counts = Counter(sample.gt_instances.labels.tolist()) if 'labels' in sample.get('gt_instances', {}) else {}
        words = [f'{name(label)} {count}' for label, count in sorted(counts.items())]
        ignored = len(sample.get('ignored_instances', ()))
        words += [f'{ignored} ignored'] if ignored else []
    else:
        words = [
            what + name(label)
            for field, what in (('gt_label', ''), ('gt_negative', 'absent: '), ('gt_unknown', 'unknown: '))
            for label in sample.get(field, torch.empty(0)).tolist()
        ]
    return ', '.join(words) or 'no labels'


def contact_sheet(pictures: Sequence[tuple[str, np.ndarray]], columns: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB: pictures under their captions, row by row."""
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(3 * columns, 3.8 * rows), dpi=100, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.axis('off')
    for ax, (caption, picture) in zip(axes, pictures):
        ax.imshow(picture, interpolation='antialiased')
        # A name may hold a $, which is no formula.
        ax.set_title(caption.replace('$', r'\$'), fontsize=8, family=font_families())
    return img_from_canvas(canvas)


if __name__ == '__main__':
    main()
