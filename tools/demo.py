"""Draw a data set of shapes, train a narrow TResNet FCOS with ASL on it, evaluate it and draw what it finds."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
CONFIG = 'configs/fcos/fcos_tresnet-narrow_fpn_asl_shapes.py'
LOSSES = ('loss', 'loss_cls', 'loss_bbox', 'loss_centerness')


def run(step: str, *command: str) -> None:
    print(f'\n=== {step}: python {" ".join(command)}', flush=True)
    if subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
        sys.exit(f'{step} failed; its output is above')


def newest(folder: Path, pattern: str) -> Path:
    """Every run writes into a folder of its own under its work dir, named by the time of its start."""
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime)


def plot_losses(scalars: list[dict[str, float]], path: Path) -> None:
    training = [line for line in scalars if 'loss' in line]
    figure, axes = plt.subplots(figsize=(7, 4), layout='constrained')
    for name in LOSSES:
        axes.plot([line['step'] for line in training], [line[name] for line in training], label=name)
    axes.set(xlabel='iteration', ylabel='training loss', title='FCOS, narrow TResNet, ASL, shapes', ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'))
    args = parser.parse_args()
    work_dir = (Path.cwd() / args.work_dir).resolve()

    run('Data', 'tools/make_shapes.py', 'data/shapes')
    start = time.perf_counter()
    run('Training', 'tools/train.py', CONFIG, '--work-dir', str(work_dir))
    minutes = (time.perf_counter() - start) / 60
    losses = work_dir / 'losses.png'
    scalars = newest(work_dir, '*/vis_data/scalars.json').read_text().splitlines()
    plot_losses([json.loads(line) for line in scalars], losses)
    checkpoint = Path((work_dir / 'last_checkpoint').read_text())
    run(
        'Evaluation',
        'tools/test.py',
        CONFIG,
        str(checkpoint),
        '--work-dir',
        str(work_dir / 'test'),
        '--show-dir',
        'detections',
    )
    result = json.loads(newest(work_dir / 'test', '*/*.json').read_text())
    pictures = newest(work_dir / 'test', '*/detections')

    print(f'\nFCOS with ASL on 150 unseen images of shapes, trained in {minutes:.1f} minutes')
    for name in ('bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_75'):
        print(f'  {name:<14}{result["coco/" + name]:6.3f}')
    print(
        f'loss curve      {losses}\ndetections      {pictures} (truth | detections)\ncheckpoint      {checkpoint}'
    )


if __name__ == '__main__':
    main()
