"""Labels written on images."""

from collections.abc import Sequence

import mmcv
import numpy as np
from matplotlib.font_manager import fontManager
from mmdet.registry import VISUALIZERS
from mmengine.dist import master_only
from mmengine.visualization import Visualizer

from .structures import MultiLabelDataSample

CORRECT, WRONG, MISSED, UNJUDGED = 'lime', 'red', 'orange', 'white'


# Of Linux, Windows and macOS; the first that is installed is taken.
CJK_FONTS = (
    'Noto Sans CJK SC',
    'Noto Sans CJK JP',
    'Source Han Sans SC',
    'WenQuanYi Micro Hei',
    'WenQuanYi Zen Hei',
    'Droid Sans Fallback',
    'Microsoft YaHei',
    'SimHei',
    'Yu Gothic',
    'Malgun Gothic',
    'PingFang SC',
    'Hiragino Sans',
    'Arial Unicode MS',
)


def font_families() -> list[str]:
    """Of matplotlib, with a font of Chinese, Japanese and Korean for what the first lacks, where one is installed."""
    installed = {font.name for font in fontManager.ttflist}
    return ['sans-serif', *[name for name in CJK_FONTS if name in installed][:1]]


class TextOfAnyScript(Visualizer):
    """mmengine's visualizer with texts in :func:`font_families`."""

    def draw_texts(self, texts: str | list[str], *args, **kwargs) -> Visualizer:
        number = 1 if isinstance(texts, str) else len(texts)
        return super().draw_texts(texts, *args, **{'font_families': [font_families()] * number, **kwargs})


@VISUALIZERS.register_module()
class MultiLabelVisualizer(TextOfAnyScript):
    """mmengine's visualizer with mmdet's ``add_datasample``, so that mmdet's visualization hook serves classifiers too.

    Args:
        max_labels: so many labels are written; a last line says how many more there are.
        kwargs: those of mmengine's ``Visualizer``.
    """

    # Smaller images are enlarged to this width or height, or their text could not be read.
    MINIMUM_SIZE = 480

    def __init__(self, name: str = 'visualizer', max_labels: int = 15, **kwargs) -> None:
        super().__init__(name, **kwargs)
        self.max_labels = max_labels

    @master_only
    def add_datasample(
        self,
        name: str,
        image: np.ndarray,
        data_sample: MultiLabelDataSample | None = None,
        draw_gt: bool = True,
        draw_pred: bool = True,
        pred_score_thr: float = 0.0,
        show: bool = False,
        wait_time: float = 0,
        out_file: str | None = None,
        step: int = 0,
    ) -> np.ndarray | None:
        """Write predicted labels with their probabilities, the most probable first, and below them missed true labels.

        With ground truth, right predictions are green, wrong ones red, missed ones orange, and unknown ones white;
        without it all are white. Ground truth alone: positive classes in green, then those that are known to be absent
        and the unknown ones, which say so.

        Args:
            name: of the window, and of the image for the backends.
            image: (H, W, 3) RGB, uint8.
            draw_gt: compare with ``gt_label``, where the sample has it.
            draw_pred: write ``pred_label``, and what is missed.
            pred_score_thr: predictions of a lower probability are not written.
            show: open a window for ``wait_time`` seconds, 0 until a key is pressed.
            out_file: where the picture is written; without, and without ``show``, it goes to the backends.

        Returns:
            the picture, (H', W', 3) RGB, uint8; None in all processes but the first, which draw nothing.
        """
        lines = [] if data_sample is None else self._lines(data_sample, draw_gt, draw_pred, pred_score_thr)
        if len(lines) > self.max_labels:
            lines[self.max_labels :] = [(f'and {len(lines) - self.max_labels} more', UNJUDGED)]
        scale = max(1.0, self.MINIMUM_SIZE / max(image.shape[:2]))
        self.set_image(mmcv.imrescale(image, scale) if scale > 1 else image)
        size = max(self.get_image().shape[0] // 36, 8)
        for i, (text, color) in enumerate(lines):
            self.draw_texts(
                # A name may hold a $, which is no formula.
                text.replace('$', r'\$'),
                np.array([[size // 2, size // 2 + i * 2 * size]]),
                font_sizes=size,
                colors=color,
                bboxes=dict(facecolor='black', alpha=0.7, pad=2, edgecolor='none'),
            )
        picture = self.get_image()
        if show:
            self.show(picture, win_name=name, wait_time=wait_time)
        if out_file is not None:
            mmcv.imwrite(picture[..., ::-1], out_file)
        elif not show:
            self.add_image(name, picture, step)
        return picture

    def _lines(
        self, sample: MultiLabelDataSample, draw_gt: bool, draw_pred: bool, pred_score_thr: float
    ) -> list[tuple[str, str]]:
        if not draw_pred:
            return self._ground_truth(sample) if draw_gt else []
        scores = sample.get('pred_score')
        predicted = []
        if scores is not None:
            scores = scores.tolist()
            predicted = [label for label in sample.pred_label.tolist() if scores[label] >= pred_score_thr]
            predicted.sort(key=lambda label: -scores[label])
        judged = draw_gt and sample.get('gt_label') is not None
        positive = set(sample.gt_label.tolist()) if judged else set()
        unknown = set(sample.gt_unknown.tolist()) if judged and sample.get('gt_unknown') is not None else set()

        def text(label: int) -> str:
            return self.class_name(label) + ('' if scores is None else f' {scores[label]:.2f}')

        lines = []
        for label in predicted:
            color = CORRECT if label in positive else WRONG if judged and label not in unknown else UNJUDGED
            lines.append((text(label), color))
        missed = sorted(positive - set(predicted))
        return lines + [(f'missed: {text(label)}', MISSED) for label in missed]

    def _ground_truth(self, sample: MultiLabelDataSample) -> list[tuple[str, str]]:
        lines = []
        for name, what, color in (
            ('gt_label', '', CORRECT),
            ('gt_negative', 'absent: ', WRONG),
            ('gt_unknown', 'unknown: ', UNJUDGED),
        ):
            labels = sample.get(name)
            lines += [(what + self.class_name(label), color) for label in ([] if labels is None else labels.tolist())]
        weight = sample.get('untagged_weight', 1.0)
        if weight < 1:
            lines.append(('others unknown' if weight == 0 else f'others absent with weight {weight:g}', UNJUDGED))
        return lines

    def class_name(self, label: int) -> str:
        classes: Sequence[str] = (self.dataset_meta or {}).get('classes') or ()
        return classes[label] if label < len(classes) else f'class {label}'
