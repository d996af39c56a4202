"""Draw a data set of shapes, train a detector and a classifier with ASL on it, evaluate both, draw what they find."""

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
TASKS = {
    'detector': dict(
        title='FCOS, narrow TResNet, ASL',
        config='configs/fcos/fcos_tresnet-narrow_fpn_asl_shapes.py',
        losses=('loss', 'loss_cls', 'loss_bbox', 'loss_centerness'),
        metrics=('coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/bbox_mAP_75'),
    ),
    'classifier': dict(
        title='Multi-label classifier, narrow TResNet, ASL',
        config='configs/multi_label/tresnet-narrow_asl_shapes.py',
        losses=('loss',),
        metrics=('multi-label/mAP', 'multi-label/CF1', 'multi-label/OF1'),
    ),
}


def run(step: str, tool: str, *arguments: str) -> None:
    command = [str(ROOT / tool), *arguments]
    print(f'\n=== {step}: python {" ".join(command)}', flush=True)
    if subprocess.run([sys.executable, *command]).returncode:
        sys.exit(f'{step} failed; its output is above')


def newest(folder: Path, pattern: str) -> Path:
    """Every run writes into a folder of its own under its work dir, named by the time of its start."""
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime)


def plot_losses(scalars: list[dict[str, float]], losses: tuple[str, ...], title: str, path: Path) -> None:
    training = [line for line in scalars if 'loss' in line]
    figure, axes = plt.subplots(figsize=(7, 4), layout='constrained')
    for name in losses:
        axes.plot([line['step'] for line in training], [line[name] for line in training], label=name)
    axes.set(xlabel='iteration', ylabel='training loss', title=f'{title}, shapes', ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def demonstrate(name: str, work_dir: Path) -> str:
    """Trains and evaluates one of ``TASKS``; returns what it gave, as text."""
    task = TASKS[name]
    start = time.perf_counter()
    config = str(ROOT / task['config'])
    run(f'Training of a {name}', 'tools/train.py', config, '--work-dir', str(work_dir))
    minutes = (time.perf_counter() - start) / 60
    scalars = newest(work_dir, '*/vis_data/scalars.json').read_text().splitlines()
    plot_losses([json.loads(line) for line in scalars], task['losses'], task['title'], work_dir / 'losses.png')
    checkpoint = (work_dir / 'last_checkpoint').read_text()
    test_dir = work_dir / 'test'
    arguments = [config, checkpoint, '--work-dir', str(test_dir), '--show-dir', 'pictures']
    run(f'Evaluation of the {name}', 'tools/test.py', *arguments)
    result = json.loads(newest(test_dir, '*/*.json').read_text())
    lines = [f'{task["title"]}: 150 unseen images of shapes, trained in {minutes:.1f} minutes']
    lines += [f'  {metric:<17}{result[metric]:7.3f}' for metric in task['metrics']]
    lines += [
        f'  loss curve       {work_dir / "losses.png"}',
        f'  pictures         {newest(test_dir, "*/pictures")}',
        f'  checkpoint       {checkpoint}',
    ]
    if charts := list(newest(test_dir, '*/vis_data').glob('vis_image/*_AP_*.png')):
        lines.append(f'  AP by class      {charts[0]}')
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'))
    args = parser.parse_args()
    work_dir = (Path.cwd() / args.work_dir).resolve()

    run('Data', 'tools/make_shapes.py', 'data/shapes')
    reports = [demonstrate(name, work_dir / name) for name in TASKS]
    print('\n' + '\n\n'.join(reports))


if __name__ == '__main__':
    main()
