"""Time and memory of table 8's metrics beside the mAP of the official code and of scikit-learn.

All take turns in one process; a figure is the median over the rounds, as a multiple of the official mAP's time. Scores
are random, three labels an image are positive, and the results of all are compared before anything is timed.
"""

import argparse
import importlib.util
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from benchmarking import Sizes, dimensions, median_times, report_growth, table
from torch import Tensor

from asl_mmdet.evaluation import (
    MultiLabelMetric,
    SparseLabels,
    average_precision,
    counts_at_threshold,
    counts_of_predictions,
    precision_recall_f1,
    rank_positives,
    top_classes,
)

try:
    import resource
except ImportError:
    sys.exit('benchmark_metric.py asks Linux or macOS for the peak of memory; on Windows run it in WSL')

THRESHOLD = 0.8
OPEN_IMAGES = (114648, 5400)
EVERYTHING = dict(
    items=('mAP', 'mAP_micro', 'CP', 'CR', 'CF1', 'OP', 'OR', 'OF1'), best_threshold=True, require_negatives=True
)
OFFICIAL, METRIC = 'official mAP', 'MultiLabelMetric.evaluate'


def official_map(scores: np.ndarray, targets: np.ndarray) -> float:
    """mAP as the official code defines it: the mean over the classes of the mean precision at their positives.

    Args:
        scores, targets: (N, C); targets are 0 or 1.
    """
    ranks = np.arange(1, len(scores) + 1)
    precisions = []
    for score, target in zip(scores.T, targets.T):
        hits = target[score.argsort()[::-1]] == 1
        found = hits.cumsum()
        precisions.append((hits * found / ranks).sum() / (found[-1] + 1e-8))
    return float(np.mean(precisions))


def table_8(scores: Tensor, targets: Tensor) -> dict[str, float]:
    """mAP and CP, CR, CF1, OP, OR, OF1 above the threshold and of the top 3, in [0, 1]."""
    labels = SparseLabels.from_dense(targets)
    top_3 = precision_recall_f1(counts_of_predictions(top_classes(scores, 3, THRESHOLD), labels))
    return {
        'mAP': average_precision(rank_positives(scores, labels)).nanmean().item(),
        **precision_recall_f1(counts_at_threshold(scores, labels, THRESHOLD)),
        **{f'{name}_top3': value for name, value in top_3.items()},
    }


class Batches:
    """What a model predicts, and what MultiLabelMetric is given: batches of 128 images.

    ``listed`` (N, K) are the classes that an image lists as positive. With ``partial`` it lists as many verified
    negatives, and all others are unknown, as in Open Images.
    """

    def __init__(self, images: int, classes: int, listed: int = 3, partial: bool = False):
        self.images, self.classes, self.partial = images, classes, partial
        self.generator = torch.Generator().manual_seed(0)
        self.positive = torch.randint(0, classes, (images, listed), generator=self.generator)
        self.negative = torch.randint(0, classes, (images, listed), generator=self.generator)

    def scores(self, first: int, last: int) -> Tensor:
        """(last - first, C) probabilities, higher for positives; other ones at each call."""
        logits = torch.randn(last - first, self.classes, generator=self.generator).mul_(2).sub_(3)
        positive = self.positive[first:last]
        return logits.scatter_add_(1, positive, torch.full(positive.shape, 2.0)).sigmoid_()

    def targets(self) -> Tensor:
        """(N, C) int8."""
        return torch.zeros(self.images, self.classes, dtype=torch.int8).scatter_(1, self.positive, 1)

    def samples(self, scores: Tensor, first: int) -> Iterator[dict]:
        for i, score in enumerate(scores, first):
            sample = dict(pred_score=score, gt_label=self.positive[i], num_classes=self.classes)
            if self.partial:
                sample.update(gt_negative=self.negative[i], untagged_weight=0.0)
            yield sample

    def metric(self, **kwargs) -> MultiLabelMetric:
        metric = MultiLabelMetric(thr=THRESHOLD, topk_above_thr=True, **kwargs)
        metric.dataset_meta = dict(classes=[str(i) for i in range(self.classes)])
        return metric


def contestants(batches: Batches) -> dict[str, Callable[[], float | dict | MultiLabelMetric]]:
    """What is timed, by name."""
    scores, targets = batches.scores(0, batches.images), batches.targets()
    arrays = scores.numpy(), targets.numpy()
    samples = [list(batches.samples(scores[first : first + 128], first)) for first in range(0, batches.images, 128)]

    def processed(**kwargs) -> MultiLabelMetric:
        metric = batches.metric(**kwargs)
        for batch in samples:
            metric.process(None, batch)
        return metric

    def evaluate(metric: MultiLabelMetric) -> Callable[[], dict]:
        results = metric.results

        def once():
            metric.results = list(results)  # evaluate empties it
            return metric.evaluate(batches.images)

        return once

    functions = {OFFICIAL: lambda: official_map(*arrays)}
    if importlib.util.find_spec('sklearn'):
        from sklearn.metrics import average_precision_score

        present = arrays[1].any(axis=0)
        functions['scikit-learn mAP'] = lambda: average_precision_score(arrays[1][:, present], arrays[0][:, present])
    return {
        **functions,
        'mAP': lambda: average_precision(rank_positives(scores, targets)).nanmean().item(),
        'table 8, of tensors': lambda: table_8(scores, targets),
        METRIC: evaluate(processed()),
        'MultiLabelMetric.evaluate, everything': evaluate(processed(**EVERYTHING)),
        'MultiLabelMetric.process, all batches': processed,
    }


def mean_average_precision(result: float | dict | MultiLabelMetric) -> float | None:
    """In [0, 1], of what a contestant returns; None where it returns no metrics."""
    if isinstance(result, dict):
        return result['mAP'] if 'mAP' in result else result['multi-label/mAP'] / 100
    return result if isinstance(result, float) else None


def peak_memory(function: Callable[[], object]) -> float:
    """Megabytes of numpy arrays and Python objects that a call makes and holds at the same time."""
    tracemalloc.start()
    function()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / 2**20


def compare(sizes: list[tuple[int, int]], rounds: int) -> str:
    """Table of all contestants, a pair of columns for each size."""
    cells, header, milliseconds = {}, ['computation'], [f'{OFFICIAL}, ms']
    for images, classes in sizes:
        batches = Batches(images, classes)
        functions = contestants(batches)
        values = {name: mean_average_precision(function()) for name, function in functions.items()}
        # A class without positives counts 0 in the official mean, and is left out of the others.
        expected = values[OFFICIAL] / batches.targets().any(dim=0).float().mean().item()
        wrong = {
            name: value
            for name, value in values.items()
            if name != OFFICIAL and value is not None and abs(value - expected) > 1e-6
        }
        if wrong:
            raise SystemExit(f'{images} x {classes}: the mAP is {expected} by the official code, but {wrong}')
        memory = {name: peak_memory(function) for name, function in functions.items()}
        times = median_times(functions, rounds)
        for name, seconds in times.items():
            cells.setdefault(name, []).extend([f'{seconds / times[OFFICIAL]:.2f}', f'{memory[name]:.1f}'])
        header += [f'{images:,} x {classes:,}', 'memory, MB']
        milliseconds += [f'{1e3 * times[OFFICIAL]:.1f}', '']
    return table(header, [[name, *values] for name, values in cells.items()] + [milliseconds])


def partial_labels(images: int, classes: int) -> str:
    """Table of everything MultiLabelMetric has, once, with verified labels only, as in Open Images."""
    batches = Batches(images, classes, listed=min(9, classes), partial=True)
    metric = batches.metric(**EVERYTHING)

    def process(first: int) -> float:
        samples = list(batches.samples(batches.scores(first, min(first + 128, images)), first))
        start = time.perf_counter()
        metric.process(None, samples)
        return time.perf_counter() - start

    processed = sum(process(first) for first in range(0, images, 128))
    start = time.perf_counter()
    metric.evaluate(images)
    evaluate = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    kept = 4 * images * classes / 2**30
    return table(
        ['images x classes', 'process, s', 'evaluate, s', 'peak memory of the process, GB', 'of it scores, GB'],
        [[f'{images:,} x {classes:,}', f'{processed:.1f}', f'{evaluate:.1f}', f'{peak:.2f}', f'{kept:.2f}']],
    )


def measure_growth(sizes: list[tuple[int, int]], rounds: int) -> dict[str, dict[tuple[int, int], float]]:
    """Milliseconds by size, by name."""
    curves = {OFFICIAL: {}, METRIC: {}}
    for size in sizes:
        functions = contestants(Batches(*size))
        for name, seconds in median_times({name: functions[name] for name in curves}, rounds).items():
            curves[name][size] = 1e3 * seconds
    return curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--sizes', type=dimensions, nargs='*', default=[(40137, 80)], metavar='IMAGESxCLASSES')
    parser.add_argument(
        '--partial',
        type=dimensions,
        nargs='?',
        const=OPEN_IMAGES,
        metavar='IMAGESxCLASSES',
        help="everything MultiLabelMetric has, once, with verified labels only; Open Images' size takes 4 GB",
    )
    parser.add_argument('--growth', type=Path, metavar='FIGURE', help='measure and draw cost by images and by classes')
    parser.add_argument('--growth-images', type=int, nargs='+', action=Sizes, default=[1000, 3000, 10000, 30000, 90000])
    parser.add_argument('--growth-classes', type=int, nargs='+', action=Sizes, default=[20, 80, 400, 2000, 9605, 32093])
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    if args.partial:  # first, as its memory is the peak of the process
        print(f'\nEverything MultiLabelMetric has, verified labels only, once; {args.threads} threads\n')
        print(partial_labels(*args.partial))
    if args.sizes:
        text = compare(args.sizes, args.rounds)
        print(
            f'\nMetrics, multiples of the time of the official mAP, medians of {args.rounds} rounds; memory beyond '
            f'scores and labels; {args.threads} threads, numpy {np.__version__}, torch {torch.__version__}\n'
        )
        print(text)
    if args.growth:
        panels = {
            'images, of 80 classes': ([(images, 80) for images in args.growth_images], 0),
            'classes, of 2,000 images': ([(2000, classes) for classes in args.growth_classes], 1),
        }
        report_growth(args.growth, panels, lambda sizes: measure_growth(sizes, max(3, args.rounds // 5)))


if __name__ == '__main__':
    main()
