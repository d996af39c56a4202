import cv2
import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from asl_mmdet.structures import MultiLabelDataSample
from asl_mmdet.visualization import CORRECT, MISSED, UNJUDGED, WRONG, MultiLabelVisualizer, font_families


@pytest.fixture
def visualizer():
    visualizer = MultiLabelVisualizer(max_labels=4)
    visualizer.dataset_meta = dict(classes=('cat', 'dog', 'tree', 'sky'))
    return visualizer


@pytest.fixture
def lines(visualizer, monkeypatch):
    """Text, colour and position of every line that is drawn."""
    drawn = []
    original = visualizer.draw_texts

    def draw_texts(text, position, colors, **kwargs):
        drawn.append((text, colors, tuple(position[0])))
        return original(text, position, colors=colors, **kwargs)

    monkeypatch.setattr(visualizer, 'draw_texts', draw_texts)
    return drawn


def sample(**kwargs):
    fields = {name: torch.tensor(value) for name, value in kwargs.items()}
    return MultiLabelDataSample(**fields)


IMAGE = np.zeros((500, 700, 3), dtype=np.uint8)


def test_predictions_are_judged_by_ground_truth(visualizer, lines):
    visualizer.add_datasample(
        '', IMAGE, sample(gt_label=[0, 3], gt_unknown=[2], pred_label=[0, 1, 2], pred_score=[0.6, 0.9, 0.7, 0.1])
    )
    assert [line[:2] for line in lines] == [
        ('dog 0.90', WRONG),
        ('tree 0.70', UNJUDGED),
        ('cat 0.60', CORRECT),
        ('missed: sky 0.10', MISSED),
    ]
    heights = [y for _, _, (_, y) in lines]
    assert heights == sorted(set(heights))


@pytest.fixture
def cjk_font(tmp_path, monkeypatch):
    """An installed font that has one Chinese sign, a square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 700), (700, 700), (700, 0)):
        pen.lineTo(corner)
    pen.closePath()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(['.notdef', 'cat'])
    font.setupCharacterMap({ord('猫'): 'cat'})
    font.setupGlyf({'.notdef': TTGlyphPen(None).glyph(), 'cat': pen.glyph()})
    font.setupHorizontalMetrics({'.notdef': (800, 0), 'cat': (800, 0)})
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable(dict(familyName='Noto Sans CJK JP', styleName='Regular'))
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / 'font.ttf')
    monkeypatch.setattr(font_manager.fontManager, 'ttflist', [*font_manager.fontManager.ttflist])
    font_manager.fontManager.addfont(tmp_path / 'font.ttf')


def test_classes_in_chinese_are_drawn_by_an_installed_font(visualizer, cjk_font, recwarn):
    visualizer.dataset_meta = dict(classes=('猫',))
    visualizer.add_datasample('', IMAGE, sample(gt_label=[0]), draw_pred=False)
    assert not [warning for warning in recwarn if 'missing from' in str(warning.message)]


def test_without_such_a_font_the_default_is_taken(monkeypatch):
    monkeypatch.setattr('asl_mmdet.visualization.CJK_FONTS', ('No Such Font',))
    assert font_families() == ['sans-serif']


@pytest.mark.parametrize('name', ['5_$', 'a$b^$', r'x$\frac$'])
def test_a_dollar_is_no_formula(visualizer, name):
    visualizer.dataset_meta = dict(classes=(name,))
    with_name, plain = (
        visualizer.add_datasample('', IMAGE, sample(gt_label=labels, pred_label=[], pred_score=[0.5]))
        for labels in ([0], [])
    )
    assert (with_name != plain).any()


@pytest.mark.parametrize(
    'kwargs, expected',
    [
        (dict(draw_gt=False), [('dog 0.90', UNJUDGED), ('cat 0.60', UNJUDGED)]),
        (dict(draw_pred=False), [('cat', CORRECT), ('sky', CORRECT)]),
        (dict(draw_pred=False, draw_gt=False), []),
        (dict(pred_score_thr=0.7), [('dog 0.90', WRONG), ('missed: cat 0.60', MISSED), ('missed: sky 0.10', MISSED)]),
    ],
)
def test_what_is_written_can_be_chosen(visualizer, lines, kwargs, expected):
    visualizer.add_datasample(
        '', IMAGE, sample(gt_label=[0, 3], pred_label=[0, 1], pred_score=[0.6, 0.9, 0.7, 0.1]), **kwargs
    )
    assert [line[:2] for line in lines] == expected


def test_ground_truth_alone_says_what_is_unknown(visualizer, lines):
    partial = sample(gt_label=[3], gt_negative=[0], gt_unknown=[2])
    visualizer.add_datasample('', IMAGE, partial, draw_pred=False)
    expected = [('sky', CORRECT), ('absent: cat', WRONG), ('unknown: tree', UNJUDGED)]
    assert [line[:2] for line in lines] == expected
    for weight, text in ((0.0, 'others unknown'), (0.25, 'others absent with weight 0.25')):
        lines.clear()
        partial.set_metainfo(dict(untagged_weight=weight))
        visualizer.add_datasample('', IMAGE, partial, draw_pred=False)
        assert [line[:2] for line in lines] == [*expected, (text, UNJUDGED)]


def test_without_ground_truth_nothing_is_judged(visualizer, lines):
    visualizer.add_datasample('', IMAGE, sample(pred_label=[3], pred_score=[0.6, 0.9, 0.7, 0.1]))
    assert [line[:2] for line in lines] == [('sky 0.10', UNJUDGED)]


def test_long_lists_are_cut_and_unnamed_classes_numbered(visualizer, lines):
    visualizer.add_datasample('', IMAGE, sample(pred_label=[0, 1, 2, 3, 4, 5], pred_score=[6.0, 5, 4, 3, 2, 1]))
    assert [line[0] for line in lines][3:] == ['sky 3.00', 'and 2 more']
    visualizer.dataset_meta = None
    lines.clear()
    visualizer.add_datasample('', IMAGE, sample(pred_label=[1], pred_score=[0.1, 0.2]))
    assert lines[0][0] == 'class 1 0.20'


def test_pictures_are_rgb_and_small_ones_are_enlarged(visualizer, tmp_path):
    red = np.zeros((48, 24, 3), dtype=np.uint8)
    red[..., 0] = 255
    picture = visualizer.add_datasample(
        '', red, sample(pred_label=[0], pred_score=[0.5]), out_file=str(tmp_path / 'new/a.png')
    )
    assert picture.shape == (480, 240, 3) and picture[-1, -1].tolist() == [255, 0, 0]
    assert (picture[:60] != [255, 0, 0]).any()
    assert np.array_equal(cv2.imread(str(tmp_path / 'new/a.png'))[..., ::-1], picture)
    assert visualizer.add_datasample('', IMAGE).shape == IMAGE.shape
