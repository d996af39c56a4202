"""What a classifier predicts, as pictures: labels on images, and the average precision of every class."""

import re
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.registry import HOOKS
from mmengine.visualization.utils import img_from_canvas

from ..structures import MultiLabelDataSample


@HOOKS.register_module()
class MultiLabelVisualizationHook(DetVisualizationHook):
    """mmdet's visualization hook, with a bar chart of the classes at the end of an evaluation.

    The chart needs ``MultiLabelMetric(per_class=True)``; it is called ``<prefix of the metric>_AP``, and its step is
    the number of training iterations. In a test, images are drawn where a folder or a window is asked for, not for
    the visualization backends.

    Args:
        max_classes: of more classes, so many are in the chart, those of the lowest AP, and its title says so.
        score_thr: labels of a lower probability count as not predicted. What is a label is up to the head otherwise.
        kwargs: those of mmdet's hook, among them ``draw``, without which there is no picture at all.
    """

    def __init__(self, max_classes: int = 100, score_thr: float = 0.0, **kwargs) -> None:
        super().__init__(score_thr=score_thr, **kwargs)
        if max_classes < 1:
            raise ValueError(f'max_classes={max_classes} of MultiLabelVisualizationHook must be 1 or more')
        self.max_classes = max_classes

    def before_run(self, runner) -> None:
        # mmdet's hook has the one that was made last, by whatever else runs in the process.
        self._visualizer = runner.visualizer

    def after_test_iter(
        self, runner, batch_idx: int, data_batch: dict, outputs: Sequence[MultiLabelDataSample]
    ) -> None:
        if self.show or self.test_out_dir is not None:
            super().after_test_iter(runner, batch_idx, data_batch, outputs)

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        if not self.draw:
            return
        charts: dict[str, dict[str, float]] = {}
        for key, value in (metrics or {}).items():
            if match := re.fullmatch(r'([^/]+)/AP_(.+)', key, re.DOTALL):
                charts.setdefault(match[1], {})[match[2]] = value
        for prefix, class_ap in charts.items():
            step = runner.message_hub.get_info('iter', 0)
            runner.visualizer.add_image(f'{prefix}_AP', draw_class_ap(class_ap, self.max_classes), step)

    after_test_epoch = after_val_epoch


def draw_class_ap(class_ap: dict[str, float], max_classes: int = 100) -> np.ndarray:
    """(H, W, 3) uint8 RGB: a bar for each class, the highest AP (in percent) on top, and their mean."""
    lowest = sorted(class_ap.items(), key=lambda item: item[1])[:max_classes]
    figure = Figure(figsize=(8, 1.2 + 0.22 * len(lowest)), dpi=100, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    bars = axes.barh(range(len(lowest)), [ap for _, ap in lowest], height=0.8)
    axes.bar_label(bars, fmt='%.1f', padding=3, fontsize=8)
    mean = sum(class_ap.values()) / len(class_ap)
    axes.axvline(mean, color='black', linestyle=':', zorder=0)
    title = f'Average precision by class, mAP {mean:.1f}'
    if len(lowest) < len(class_ap):
        title += f', the lowest {len(lowest)} of {len(class_ap):,} classes'
    axes.set(xlim=(0, 107), ylim=(-0.7, len(lowest) - 0.3), xlabel='%', title=title)
    # A name may hold a $, which is no formula.
    axes.set_yticks(range(len(lowest)), [name.replace('$', r'\$') for name, _ in lowest], fontsize=8)
    return img_from_canvas(canvas)
