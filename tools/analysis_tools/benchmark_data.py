"""Images per second of a classification recipe's training pipeline, and which of its transforms the time goes to.

Reads pictures of --images, or draws some of COCO's usual size and bytes. They stay in the system's file cache, so that
a slow disk is not seen here. Data loaders with different numbers of workers take turns.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from benchmarking import table
from mmdet.registry import DATASETS
from mmdet.utils import register_all_modules
from mmengine.dataset import BaseDataset
from mmengine.fileio import get as read_bytes
from mmengine.runner import Runner
from mmengine.utils.dl_utils import set_multi_processing

from asl_mmdet.command_line import add_cfg_options, check_temporary_folder, read_config
from asl_mmdet.progress import track

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/multi_label/tresnet-m_asl_8xb16-60e_coco2014-224.py'


def draw_pictures(folder: Path, count: int) -> None:
    """JPEGs of 640 x 480 pixels with about as much detail at every scale, and so as many bytes, as photographs have."""
    rng = np.random.default_rng(0)
    for i in range(count):
        picture = np.zeros((480, 640, 3), dtype=np.float32)
        for octave in range(1, 9):
            noise = rng.normal(0, 45 * 0.75**octave, (3 * 2**octave // 2, 2 ** (octave + 1), 3)).astype(np.float32)
            picture += cv2.resize(noise, (640, 480), interpolation=cv2.INTER_CUBIC)
        path, picture = folder / f'{i:06d}.jpg', (128 + picture).clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 96])


def annotate(folder: Path, file: Path) -> int:
    """COCO annotations that list one object of one class in every picture of a folder; returns how many there are."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in ('.jpg', '.jpeg', '.png'))
    if not names:
        sys.exit(f'{folder} holds no .jpg, .jpeg or .png')
    content = dict(
        images=[dict(id=i, file_name=name) for i, name in enumerate(names)],
        annotations=[dict(id=i, image_id=i, category_id=1, bbox=[0, 0, 9, 9]) for i in range(len(names))],
        categories=[dict(id=1, name='object')],
    )
    file.write_text(json.dumps(content))
    return len(names)


def transform_times(dataset: BaseDataset, passes: int) -> dict[str, float]:
    """Mean seconds an image of each transform; the loader's part that reads the file stands by itself."""
    total = defaultdict(float)

    def timed(name: str, function: Callable[[], object]) -> object:
        start = time.perf_counter()
        result = function()
        total[name] += time.perf_counter() - start
        return result

    for once in track(range(passes + 1), 'transforms'):
        if once == 1:  # the first pass fills caches
            total.clear()
        for i in range(len(dataset)):
            results = dataset.get_data_info(i)
            timed('reading the file', lambda: read_bytes(results['img_path']))
            for transform in dataset.pipeline.transforms:
                results = timed(type(transform).__name__, lambda: transform(results))
    total['LoadImageFromFile'] -= total['reading the file']
    return {name: seconds / passes / len(dataset) for name, seconds in total.items()}


def loader_speeds(dataset: BaseDataset, cfg: dict, workers: list[int], batches: int, rounds: int) -> dict[int, float]:
    """Images a second by number of workers, medians over rounds in which all take turns."""
    loaders = {}
    for number in workers:
        options = dict(cfg, num_workers=number, persistent_workers=number > 0, sampler=dict(type='InfiniteSampler'))
        loaders[number] = iter(Runner.build_dataloader({**options, 'dataset': dataset}, seed=0))
    rates = {number: [] for number in workers}
    for turn in track(range(rounds + 1), 'loaders'):
        for number, loader in loaders.items():
            # What the workers have prepared while others had their turn is not counted.
            for _ in range(2 * number + 1):
                next(loader)
            start = time.perf_counter()
            for _ in range(batches):
                next(loader)
            if turn:
                rates[number].append(batches * cfg['batch_size'] / (time.perf_counter() - start))
    return {number: statistics.median(values) for number, values in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--config', default=str(CONFIG), help='its training set must be a CocoMultiLabelDataset')
    parser.add_argument('--images', type=Path, metavar='FOLDER', help='pictures to read (default: 64 drawn ones)')
    add_cfg_options(parser)
    parser.add_argument('--workers', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--batches', type=int, default=20, help='batches of a turn')
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--pictures', type=int, default=64, help='how many are drawn without --images')
    args = parser.parse_args()

    register_all_modules(init_default_scope=True)
    cfg = read_config(args.config, args.cfg_options)
    cfg.train_dataloader.num_workers = max(args.workers)
    check_temporary_folder(cfg, 'train')
    set_multi_processing(**cfg.env_cfg.mp_cfg)
    loader_cfg = cfg.train_dataloader.to_dict()
    dataset_cfg = loader_cfg.pop('dataset')
    if dataset_cfg['type'] != 'CocoMultiLabelDataset':
        sys.exit(f'{args.config}: the training set is a {dataset_cfg["type"]}, not a CocoMultiLabelDataset')
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.images or Path(temporary)
        if not args.images:
            draw_pictures(folder, args.pictures)
        ann_file = Path(temporary) / 'annotations.json'
        count = annotate(folder, ann_file)
        dataset_cfg.update(
            data_root='', ann_file=str(ann_file), data_prefix=dict(img_path=str(folder.resolve())), expected_images=None
        )
        dataset = DATASETS.build(dataset_cfg)
        size = statistics.mean(Path(dataset.get_data_info(i)['img_path']).stat().st_size for i in range(count))
        speeds = loader_speeds(dataset, loader_cfg, args.workers, args.batches, args.rounds)
        times = transform_times(dataset, max(1, args.rounds * 32 // count))

    what = f'{count} {"" if args.images else "drawn "}pictures of {size / 1024:.0f} kB, {Path(args.config).stem}'
    print(f'\nTraining pipeline, {what}, batches of {loader_cfg["batch_size"]}, medians of {args.rounds} rounds\n')
    print(table(['workers', 'images/s'], [[str(number), f'{speed:.0f}'] for number, speed in speeds.items()]))
    total = sum(times.values())
    print('\nWhere the time of an image goes, in one process\n')
    rows = [[name, f'{100 * seconds / total:.0f} %'] for name, seconds in times.items()]
    print(table(['transform', 'share'], rows + [['all, images/s of one core', f'{1 / total:.0f}']]))


if __name__ == '__main__':
    main()
