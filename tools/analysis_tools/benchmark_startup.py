"""How long a run takes to start: imports, data sets of COCO's size, and tools/train.py up to its first iteration.

Annotation files of COCO 2014's size are written to a temporary folder, with outlines, so that they are about as long;
all images are links to one drawn picture. Nothing else is left out of what a start does but the pretrained weights.
"""

import argparse
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from benchmark_data import CONFIG, ROOT, draw_pictures
from benchmarking import Sizes, draw_growth, growth_table, median_times, table
from mmdet.utils import register_all_modules
from mmengine.logging import MMLogger

from asl_mmdet.datasets import CocoMultiLabelDataset
from asl_mmdet.progress import track

TRAIN, VAL, OBJECTS_PER_IMAGE = 82081, 40137, 7.37
IMPORTS = """
import gc, time
start = time.perf_counter()
from mmdet.utils import register_all_modules
from mmengine.runner import Runner
register_all_modules()
others = time.perf_counter() - start
gc.collect()  # of the others' objects, which takes longer than to import the plugin, and may fall into either
start = time.perf_counter()
import asl_mmdet
print('seconds', others, time.perf_counter() - start)
"""
# Without bytecode, which containers like to switch off, every import compiles the plugin.
ENVIRONMENT = os.environ | {'PYTHONDONTWRITEBYTECODE': ''}


def write_coco(root: Path, split: str, images: int) -> None:
    """``annotations/instances_<split>.json`` of 80 classes, and the folder ``<split>`` with all its images."""
    rng = np.random.default_rng(0)
    # Every image has an object at least.
    owners = np.concatenate([np.arange(images), rng.integers(0, images, round((OBJECTS_PER_IMAGE - 1) * images))])
    names = [f'COCO_{split}_{i:012d}.jpg' for i in range(images)]
    outline = ','.join(f'{x:.2f}' for x in rng.uniform(0, 480, 60))
    (root / split).mkdir(parents=True)
    draw_pictures(root / split, 1)
    picture = (root / split / '000000.jpg').rename(root / f'{split}.jpg')
    for name in names:
        os.symlink(picture.resolve(), root / split / name)
    entries = dict(
        images=(f'{{"id":{i},"file_name":"{name}","height":480,"width":640}}' for i, name in enumerate(names)),
        annotations=(
            f'{{"segmentation":[[{outline}]],"area":99.5,"iscrowd":0,"image_id":{owner},"bbox":[9.5,9.5,99.5,99.5],'
            f'"category_id":{category},"id":{i}}}'
            for i, (owner, category) in enumerate(zip(owners.tolist(), rng.integers(1, 81, len(owners)).tolist()))
        ),
        categories=(f'{{"id":{i},"name":"class {i}"}}' for i in range(1, 81)),
    )
    (root / 'annotations').mkdir(exist_ok=True)
    with open(root / f'annotations/instances_{split}.json', 'w') as file:
        lists = (f'"{key}":[{",".join(values)}]' for key, values in entries.items())
        file.write('{' + ','.join(lists) + '}')


def import_times(rounds: int) -> tuple[float, float]:
    """Seconds that mmdet and mmengine's runner take to import, and the plugin after them; each in a new process."""
    found = []
    command = [sys.executable, '-W', 'ignore', '-c', IMPORTS]
    for _ in track(range(rounds + 1), 'imports'):
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
        if done.returncode:
            sys.exit(done.stderr)
        found.append(tuple(map(float, done.stdout.rpartition('seconds')[2].split())))
    # The first writes bytecode.
    return tuple(statistics.median(values) for values in zip(*found[1:]))


def data_set_times(root: Path, split: str, rounds: int) -> dict[str, float]:
    """Seconds to build a data set whose annotations are parsed, and one whose labels are cached."""

    def build() -> CocoMultiLabelDataset:
        return CocoMultiLabelDataset(
            ann_file=f'annotations/instances_{split}.json', data_root=str(root), data_prefix=dict(img_path=f'{split}/')
        )

    def parse() -> CocoMultiLabelDataset:
        (root / f'annotations/instances_{split}.json.labels.npz').unlink(missing_ok=True)
        return build()

    return median_times({'parsed': parse, 'cached': build}, rounds)


@contextmanager
def training(config: str, root: Path, val: str, train: str) -> Iterator[subprocess.Popen]:
    """tools/train.py with batches of two images from the folders that write_coco made."""
    options = dict(train_dataloader=train, val_dataloader=val, test_dataloader=val)
    settings = ['default_hooks.logger.interval=1', 'model.backbone.init_cfg=None', 'train_dataloader.batch_size=2']
    for loader, split in options.items():
        settings += [
            f'{loader}.dataset.data_root={root}/',
            f'{loader}.dataset.ann_file=annotations/instances_{split}.json',
            f'{loader}.dataset.data_prefix.img_path={split}/',
            f'{loader}.dataset.expected_images=None',
            f'{loader}.num_workers=2',
        ]
    command = [sys.executable, str(ROOT / 'tools/train.py'), config, '--work-dir', str(root / 'work')]
    process = subprocess.Popen(
        [*command, '--cfg-options', 'optim_wrapper.type=OptimWrapper', *settings],
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its workers, too
        process.wait()
        process.stdout.close()


def time_to_first_iteration(config: str, root: Path, **splits: str) -> float:
    """Seconds from the start of tools/train.py to the line of the log that follows the first iteration."""
    start, lines = time.perf_counter(), []
    with training(config, root, **splits) as process:
        for line in process.stdout:
            lines.append(line)
            if re.search(r'Epoch\(train\).*loss: ', line):
                return time.perf_counter() - start
    sys.exit(f'tools/train.py ended before its first iteration:\n{"".join(lines[-20:])}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--config', default=str(CONFIG), help='its data sets must be CocoMultiLabelDataset')
    parser.add_argument('--images', type=int, nargs=2, default=[TRAIN, VAL], metavar=('TRAIN', 'VAL'))
    parser.add_argument('--growth', type=Path, metavar='FIGURE', help='measure and draw start-up by images')
    parser.add_argument('--growth-images', type=int, nargs='+', action=Sizes, default=[1000, 3000, 10000, 30000, 90000])
    parser.add_argument('--rounds', type=int, default=3)
    args = parser.parse_args()

    register_all_modules()
    MMLogger.get_instance('mmengine', log_level='ERROR')
    others, plugin = import_times(args.rounds)
    with tempfile.TemporaryDirectory() as temporary:
        root, splits = Path(temporary), dict(train='train2014', val='val2014')
        for split, images in zip(splits.values(), args.images):
            write_coco(root, split, images)
        megabytes = (root / 'annotations/instances_train2014.json').stat().st_size / 2**20
        built = [data_set_times(root, split, args.rounds) for split in splits.values()]
        starts = [time_to_first_iteration(args.config, root, **splits) for _ in track(range(args.rounds), 'training')]
        print(
            f'\nStart-up, {args.images[0]:,} + {args.images[1]:,} images, {megabytes:.0f} MB of training annotations, '
            f'medians of {args.rounds}\n'
        )
        rows = {
            'import of mmdet and mmengine': others,
            'import of asl_mmdet beyond that': plugin,
            'both data sets, annotations parsed': sum(times['parsed'] for times in built),
            'both data sets, labels cached': sum(times['cached'] for times in built),
            'tools/train.py to the end of its first iteration, cached': statistics.median(starts),
        }
        print(table(['step', 'seconds'], [[name, f'{seconds:.2f}'] for name, seconds in rows.items()]))
        if args.growth:
            curves = {'parsed': {}, 'cached': {}}
            for images in args.growth_images:
                write_coco(root / str(images), 'some', images)
                for name, seconds in data_set_times(root / str(images), 'some', args.rounds).items():
                    curves[name][images] = seconds
                shutil.rmtree(root / str(images))
            print('\nStart of one data set by number of images\n')
            print(growth_table('images', curves, 's'))
            draw_growth(args.growth, {'images': curves}, 's')


if __name__ == '__main__':
    main()
