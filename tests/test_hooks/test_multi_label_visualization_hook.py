from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from mmengine.logging import MessageHub
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from asl_mmdet.hooks import MultiLabelVisualizationHook
from asl_mmdet.hooks.multi_label_visualization_hook import draw_class_ap
from asl_mmdet.structures import MultiLabelDataSample
from asl_mmdet.visualization import MultiLabelVisualizer


@pytest.fixture
def stub(tmp_path):
    """What the hook asks of a runner."""
    name = f'{tmp_path.parent.name}-{tmp_path.name}'

    class Stub(Runner):
        iter, work_dir, timestamp, message_hub = 7, str(tmp_path), 'now', MessageHub.get_instance(name)
        visualizer = MultiLabelVisualizer.get_instance(
            name, vis_backends=[dict(type='LocalVisBackend')], save_dir=str(tmp_path)
        )

        def __init__(self):
            pass

    return Stub()


@pytest.fixture
def samples(tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((50, 50, 3), dtype=np.uint8))
    one = MultiLabelDataSample(gt_label=torch.tensor([0]), pred_label=torch.tensor([0]), pred_score=torch.tensor([0.9]))
    one.set_metainfo(dict(img_path=str(tmp_path / 'a.png')))
    return [one]


@pytest.fixture
def bars(monkeypatch):
    """Lengths, names and title of every chart that is drawn."""
    drawn = {}

    def record(method, key):
        original = getattr(Axes, method)
        monkeypatch.setattr(
            Axes,
            method,
            lambda axes, *args, **kwargs: (
                drawn.update({key: kwargs.get('title', args[1:2] and list(args[1]))}),
                original(axes, *args, **kwargs),
            )[1],
        )

    record('barh', 'lengths')
    record('set_yticks', 'names')
    record('set', 'title')
    return drawn


METRICS = {'multi-label/mAP': 55.0, 'multi-label/AP_dog': 80.0, 'multi-label/AP_A/B': 30.0, 'raw/multi-label/AP_dog': 1}


def pictures_of(folder, pattern):
    return sorted(path.name for path in Path(folder).glob(pattern))


@pytest.mark.parametrize('method', ['after_val_epoch', 'after_test_epoch'])
def test_an_evaluation_ends_with_a_bar_for_each_class(stub, tmp_path, bars, method):
    stub.message_hub.update_info('iter', 30)
    getattr(MultiLabelVisualizationHook(draw=True), method)(stub, METRICS)
    assert bars == dict(lengths=[30.0, 80.0], names=['A/B', 'dog'], title='Average precision by class, mAP 55.0')
    assert pictures_of(tmp_path, 'vis_data/vis_image/*') == ['multi-label_AP_30.png']
    picture = cv2.imread(str(tmp_path / 'vis_data/vis_image/multi-label_AP_30.png'))
    assert picture.shape[1] == 800 and picture.mean() < 250


def test_no_chart_without_values_by_class_or_without_draw(stub, tmp_path, bars):
    MultiLabelVisualizationHook(draw=True).after_val_epoch(stub, {'multi-label/mAP': 55.0})
    MultiLabelVisualizationHook(draw=True).after_val_epoch(stub, None)
    MultiLabelVisualizationHook(draw=False).after_val_epoch(stub, METRICS)
    assert not bars and not pictures_of(tmp_path, 'vis_data/vis_image/*')


def test_a_chart_of_many_classes_shows_the_lowest(bars):
    short = draw_class_ap({f'c{i}': float(i) for i in range(30)}, max_classes=3)
    assert bars['lengths'] == [0.0, 1.0, 2.0]
    assert bars['title'] == 'Average precision by class, mAP 14.5, the lowest 3 of 30 classes'
    assert draw_class_ap({f'c{i}': float(i) for i in range(30)}).shape[0] > 2 * short.shape[0]


def test_names_are_no_formulas(bars):
    draw_class_ap({'$x_$y^$': 10.0})
    assert bars['names'] == [r'\$x_\$y^\$']


def test_images_of_a_validation_go_to_the_backends(stub, samples, tmp_path):
    hook = MultiLabelVisualizationHook(draw=True, interval=4)
    hook.before_run(stub)
    for batch in range(3):
        hook.after_val_iter(stub, batch, None, samples)
    assert pictures_of(tmp_path, 'vis_data/vis_image/*') == ['val_img_8.png']


def test_images_of_a_test_are_drawn_where_a_folder_is_named(stub, samples, tmp_path):
    for folder in (None, 'drawn'):
        hook = MultiLabelVisualizationHook(draw=True, test_out_dir=folder)
        hook.before_run(stub)
        hook.after_test_iter(stub, 0, None, samples)
    assert pictures_of(tmp_path, 'vis_data/vis_image/*') == []
    assert pictures_of(tmp_path, 'now/drawn/*') == ['a.png']


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match='max_classes=0'):
        MultiLabelVisualizationHook(max_classes=0)


@pytest.mark.parametrize('kwargs, color', [({}, 'lime'), (dict(score_thr=0.95), 'orange')])
def test_what_the_head_calls_a_label_is_one(stub, samples, monkeypatch, kwargs, color):
    """Also where its probability is low, as that of the first of many classes may be."""
    samples[0].pred_score[:] = 0.1
    colors = []
    monkeypatch.setattr(MultiLabelVisualizer, 'draw_texts', lambda *_, **kwargs: colors.append(kwargs['colors']))
    hook = MultiLabelVisualizationHook(draw=True, interval=1, **kwargs)
    hook.before_run(stub)
    hook.after_val_iter(stub, 0, {}, samples)
    assert colors == [color]


def test_pictures_go_to_the_visualizer_of_the_run(stub, samples, tmp_path, monkeypatch):
    """Not to the one that was made last in the process, which may be no MultiLabelVisualizer."""
    monkeypatch.setitem(Visualizer._instance_dict, 'another run', Visualizer('another run'))
    hook = MultiLabelVisualizationHook(draw=True, interval=1)
    hook.before_run(stub)
    hook.after_val_iter(stub, 0, {}, samples)
    assert pictures_of(tmp_path, 'vis_data/vis_image/*') == ['val_img_7.png']
