"""tools/analysis_tools/audit_labels.py as its users run it, the page in a browser, and what a data set makes of it."""

import csv
import importlib
import json
import re
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config

from asl_mmdet.datasets import CocoMultiLabelDataset, CSVMultiLabelDataset
from asl_mmdet.inferencer import MultiLabelInferencer
from asl_mmdet.label_audit_page import audit_page
from tests.conftest import ROOT, run_tool

TOOL = 'tools/analysis_tools/audit_labels.py'
CONFIG = ROOT / 'configs/multi_label/tresnet-narrow_asl_shapes-64.py'
CLASSES = ('circle', 'ring', 'square', 'triangle', 'star', 'cross')
# p* of this loss, 1 + m - sqrt(m (1 + m)), is 0.71: some of what an untrained network says lies beyond it.
GAMMA_NEG, CLIP = 0.0, 0.2
P_STAR = 1.2 - 0.24**0.5
NAME = '<b>&"quoted", 1;é.png'


@pytest.fixture(scope='module')
def audited(tmp_path_factory, shapes):
    """Two checkpoints of a network that was not trained, on 16 images of which one has a name with everything in it."""
    folder = tmp_path_factory.mktemp('audit')
    shutil.copytree(shapes, folder / 'shapes')
    (folder / 'shapes/train/000001.png').rename(folder / 'shapes/train' / NAME)
    ann_file = folder / 'shapes/annotations/train.json'
    content = json.loads(ann_file.read_text())
    content['images'][0]['file_name'] = NAME
    ann_file.write_text(json.dumps(content))
    config = folder / 'config.py'
    config.write_text(
        f'_base_ = {str(CONFIG)!r}\n'
        f'model = dict(head=dict(loss=dict(gamma_neg={GAMMA_NEG}, clip={CLIP})))\n'
        f'train_dataloader = dict(dataset=dict(data_root={str(folder / "shapes")!r}))\n'
        'test_dataloader = dict(num_workers=0, persistent_workers=False)\n'
    )
    register_all_modules(init_default_scope=True)
    cfg = Config.fromfile(config)
    for epoch in (2, 10, 9):
        torch.manual_seed(epoch)
        model = MODELS.build(cfg.model)
        model.init_weights()
        torch.nn.init.normal_(model.head.fc.weight, std=3)
        torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=CLASSES))),
                   folder / f'epoch_{epoch}.pth')  # fmt: skip
    return dict(folder=folder, config=config)


@pytest.fixture(scope='module')
def result(audited):
    """Output of the tool, and the rows of its CSV."""
    out_dir = audited['folder'] / 'out'
    checkpoint = audited['folder'] / 'epoch_10.pth'
    done = run_tool(TOOL, audited['config'], checkpoint, '--epochs', 2, '--out-dir', out_dir)
    assert done.returncode == 0, done.stdout
    with open(out_dir / 'audit.csv', encoding='utf-8', newline='') as file:
        return dict(output=done.stdout, rows=list(csv.DictReader(file)), out_dir=out_dir)


@pytest.fixture
def audit(audited, monkeypatch, capfd):
    """The tool in this process; returns its exit status and what it printed."""
    monkeypatch.syspath_prepend(ROOT / 'tools/analysis_tools')
    monkeypatch.setattr('asl_mmdet.command_line.print_log', lambda message, *_: print(message))
    tool = importlib.import_module('audit_labels')

    def run(*arguments, config=audited['config']):
        given = [config, audited['folder'] / 'epoch_10.pth', *arguments]
        monkeypatch.setattr('sys.argv', ['audit_labels.py', *map(str, given)])
        try:
            status = tool.main()
        except SystemExit as error:
            status = error.code
        return status, ''.join(capfd.readouterr())

    return run


def test_ranks_by_the_mean_over_the_last_epochs(audited, result):
    """Against the probabilities that MultiLabelInferencer gives for the same files."""
    assert 'averaged over 2 checkpoints, epoch_9.pth, epoch_10.pth' in result['output']
    assert f'gamma_neg={GAMMA_NEG}, clip={CLIP}' in result['output']
    folder = audited['folder'] / 'shapes/train'
    content = json.loads((audited['folder'] / 'shapes/annotations/train.json').read_text())
    names = {image['id']: image['file_name'] for image in content['images']}
    positives = {(names[a['image_id']], CLASSES[a['category_id'] - 1]) for a in content['annotations']}
    p = {}
    for epoch in (9, 10):
        inferencer = MultiLabelInferencer(CONFIG, audited['folder'] / f'epoch_{epoch}.pth', 'cpu', show_progress=False)
        for one in inferencer([str(folder / name) for name in names.values()], all_scores=True)['predictions']:
            for name, score in one['scores'].items():
                p.setdefault((one['image'].rpartition('/')[2], name), []).append(score)
    expected = sorted(
        (label for label in p if label not in positives and np.mean(p[label]) > P_STAR),
        key=lambda one: -np.mean(p[one]),
    )
    found = [row for row in result['rows'] if row['label'] == '0']
    assert expected and [(row['image'], row['class']) for row in found] == expected
    assert [int(row['rank']) for row in found] == list(range(1, len(found) + 1))
    for row in found:
        values = p[row['image'], row['class']]
        assert float(row['p_mean']) == pytest.approx(np.mean(values), abs=1e-5)
        assert float(row['p_std']) == pytest.approx(np.std(values), abs=1e-5)
        assert float(row['p_star']) == pytest.approx(P_STAR, abs=1e-5) and row['p_negatives'] == ''
    negatives = {
        name: np.mean([v for (_, other), v in p.items() if other == name and (_, other) not in positives], axis=0)
        for name in CLASSES
    }
    doubtful = {(row['image'], row['class']) for row in result['rows'] if row['label'] == '1'}
    assert doubtful == {label for label in positives if np.all(np.array(p[label]) < negatives[label[1]])}
    assert doubtful
    assert f'{len(found)} of {16 * 6 - len(positives)} negatives lie beyond p*' in result['output']


def test_says_what_it_had_to_do_without(audit, tmp_path):
    status, output = audit('--epochs', 9, '--page-limit', 2, '--out-dir', tmp_path)
    assert not status, output
    assert re.search('3 of --epochs 9 checkpoints are there: .*max_keep_ckpts=9', output)
    left_out = re.search(
        r'The page shows 4 of (\d+) suspects, the first 2 of each kind; (\d+) are left out here and stand in audit.csv',
        output,
    )
    assert int(left_out[1]) == int(left_out[2]) + 4 == len((tmp_path / 'audit.csv').read_text('utf-8').splitlines()) - 1
    page = (tmp_path / 'audit.html').read_text('utf-8')
    assert left_out[0] in page and page.count('"rank"') == 4


def test_lists_as_many_negatives_as_are_asked_for(audit, tmp_path):
    lists = {}
    for number in (0, 60):
        status, output = audit('--epochs', 2, '--missing', number, '--out-dir', tmp_path / str(number))
        assert not status, output
        with open(tmp_path / str(number) / 'audit.csv', encoding='utf-8', newline='') as file:
            lists[number] = [row for row in csv.DictReader(file) if row['label'] == '0']
    beyond = len(lists[0])
    assert 0 < beyond < 60 == len(lists[60]) and lists[60][:beyond] == lists[0]
    assert f' {60 - beyond} of suspicion 0 follow, the most probable others.' in output
    added = lists[60][beyond:]
    assert {float(row['suspicion']) for row in added} == {0}
    p = [float(row['p_mean']) for row in added]
    assert p == sorted(p, reverse=True) and p[0] <= P_STAR + 1e-6


@pytest.mark.parametrize(
    'settings, message',
    [
        (
            "train_dataloader = dict(dataset=dict(metainfo=dict(classes=['star'])))",
            'was trained on the classes circle, r',
        ),
        ('model = None', 'faulty.py has no model'),
        ("train_dataloader = dict(dataset=dict(corrections='nowhere.csv'))", 'nowhere.csv does not exist'),
        ('model = dict(head=dict(loss=dict(clip=0.0)))', 'gamma_neg=0.0, clip=0 the gradient .* suspects no label'),
        (
            "model = dict(head=dict(loss=dict(_delete_=True, type='CrossEntropyLoss', use_sigmoid=True)))",
            r'model.head.loss is CrossEntropyLoss, whose gradient has no p\*: train with AsymmetricLoss',
        ),
    ],
)
def test_faults_end_in_one_line(audit, audited, tmp_path, settings, message):
    config = tmp_path / 'faulty.py'
    config.write_text(f'_base_ = {str(audited["config"])!r}\n{settings}\n')
    status, output = audit('--epochs', 1, config=config)
    assert status == 1 and re.search(message, output.splitlines()[-1]), output


def test_workers_that_would_end_are_refused(audit, monkeypatch):
    monkeypatch.setattr('asl_mmdet.command_line.tempfile', SimpleNamespace(gettempdir=lambda: f'/{"x" * 90}'))
    status, _ = audit('--cfg-options', 'test_dataloader.num_workers=2')
    assert 'Set TMPDIR to a shorter one' in status


def test_detectors_are_referred_to_a_classifier(audit):
    status, output = audit(config=ROOT / 'configs/fcos/fcos_tresnet-narrow_fpn_asl_shapes.py')
    assert status == 1
    assert (
        'FCOS is no ImageClassifier, and labels of images are audited with a classifier; train one on the same COCO'
        in (output.splitlines()[-1])
    )


def test_gamma_that_a_hook_adapted_counts(audit, audited, tmp_path):
    tool = importlib.import_module('audit_labels')
    path = tmp_path / 'epoch_1.pth'
    content = torch.load(audited['folder'] / 'epoch_10.pth')
    content['state_dict']['head.loss_module.gamma_neg'] = torch.tensor([1.0, 2, 3, 4, 5, 6])
    torch.save(content, path)
    model = MultiLabelInferencer(CONFIG, path, 'cpu', show_progress=False).model
    gamma_neg, clip, _ = tool.loss_of(model, path)
    assert (gamma_neg.tolist(), clip) == ([1, 2, 3, 4, 5, 6], 0.05)
    assert tool.in_words(gamma_neg) == 'one for each class, 1 to 6' and tool.in_words(4.0) == '4.0'
    assert tool.loss_of(model, audited['folder'] / 'epoch_10.pth') == (4.0, 0.05, False)


# ----------------------------------------------------------------------------------------------------------- the page


def saved(folder):
    path, end = folder / 'corrections.csv', time.time() + 10
    while not path.is_file() and time.time() < end:
        time.sleep(0.05)
    return path


def tick(driver, image, name, decision):
    for card in driver.find_elements('css selector', 'article'):
        if card.find_element('tag name', 'b').text == name and card.find_element('class name', 'name').text == image:
            driver.execute_script('arguments[0].scrollIntoView({block: "center"})', card)
            card.find_element('css selector', f'input[value={decision}]').click()
            return
    raise AssertionError(f'there is no card of {image}, {name}')


def labels(dataset):
    return {
        (info['img_path'].rpartition('/')[2], dataset.metainfo['classes'][column], name)
        for info in map(dataset.get_data_info, range(len(dataset)))
        for name in ('gt_label', 'gt_unknown')
        for column in info.get(name, [])
    }


def test_what_is_ticked_on_the_page_changes_the_labels(result, audited, browser, tmp_path):
    driver = browser.open(result['out_dir'] / 'audit.html')
    assert len(driver.find_elements('css selector', 'article')) == len(result['rows'])
    missing = [(row['image'], row['class']) for row in result['rows'] if row['label'] == '0']
    doubtful = [(row['image'], row['class']) for row in result['rows'] if row['label'] == '1']
    odd = next(label for label in missing if label[0] == NAME)
    other = next(label for label in missing if label[0] != NAME)
    tick(driver, *odd, 'positive')
    tick(driver, *other, 'positive')
    tick(driver, *other, 'unknown')  # in place of the choice before
    tick(driver, *doubtful[0], 'negative')
    tick(driver, *doubtful[1], 'negative')
    tick(driver, *doubtful[1], 'negative')  # and back
    assert driver.find_element('id', 'count').text == '3 decided'
    browser.screenshot(tmp_path / 'page.png')
    browser.reload()
    assert driver.find_element('id', 'count').text == '3 decided'
    driver.find_element('id', 'save').click()
    path = saved(tmp_path)
    with open(path, encoding='utf-8', newline='') as file:
        assert sorted(csv.reader(file)) == sorted(
            [['image', 'class', 'decision'], [*odd, 'positive'], [*other, 'unknown'], [*doubtful[0], 'negative']]
        )
    changes = {(*odd, 'gt_label'), (*other, 'gt_unknown'), (*doubtful[0], 'gt_label')}

    root = audited['folder'] / 'shapes'
    coco = dict(
        ann_file='annotations/train.json',
        data_root=str(root),
        data_prefix=dict(img_path='train'),
        metainfo=dict(classes=CLASSES),
        unannotated='keep',
    )
    before = labels(CocoMultiLabelDataset(**coco))
    assert labels(CocoMultiLabelDataset(corrections=str(path), **coco)) == before ^ changes
    with open(tmp_path / 'table.csv', 'w', encoding='utf-8', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['image', 'labels'])
        for image in sorted(path.name for path in (root / 'train').iterdir()):
            writer.writerow([image, '|'.join(name for other, name, _ in before if other == image)])
    table = dict(
        ann_file=str(tmp_path / 'table.csv'),
        data_prefix=dict(img_path=str(root / 'train')),
        label_separator='|',
        metainfo=dict(classes=CLASSES),
    )
    assert labels(CSVMultiLabelDataset(**table)) == before
    assert labels(CSVMultiLabelDataset(corrections=str(path), **table)) == before ^ changes


def test_filters_of_the_page(result, browser):
    driver = browser.open(result['out_dir'] / 'audit.html', width=390)
    rows = result['rows']

    def visible():
        return len(driver.find_elements('css selector', 'article:not([hidden])'))

    driver.find_element('css selector', '#kind option[value="1"]').click()
    doubtful = [row for row in rows if row['label'] == '1']
    assert visible() == len(doubtful)
    name = doubtful[0]['class']
    driver.find_element('css selector', f'#class option[value={name}]').click()
    assert visible() == sum(row['class'] == name for row in doubtful)
    assert driver.find_element('id', 'shown').text == f'{visible()} of {len(rows)} shown'
    assert driver.execute_script('return document.documentElement.scrollWidth') <= 390


def test_a_page_of_thousands(browser, tmp_path):
    """Names that hold markup stay text; earlier corrections are saved again, unless they are decided anew."""
    name = '</script><img src=x onerror=alert(1)>.jpg'
    suspects = [
        {'image': f'{i}{name}', 'class': 'a,"b"\u2028', 'label': i % 2, 'rank': i // 2 + 1, 'p_mean': 0.9, 'p_std': 0.0,
         'limit': 0.8, 'suspicion': 0.5}
        for i in range(3000)
    ]  # fmt: skip
    pixel = 'data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAAC'
    earlier = [['old.jpg', 'x', 'unknown'], [f'1{name}', 'a,"b"\u2028', 'unknown']]
    page = audit_page('<i>title', ['<b>note'], suspects, {one['image']: pixel for one in suspects}, earlier)
    (tmp_path / 'page.html').write_text(page, encoding='utf-8')
    start = time.time()
    driver = browser.open(tmp_path / 'page.html')
    assert len(driver.find_elements('css selector', 'article')) == 3000
    assert time.time() - start < 20
    assert driver.find_element('tag name', 'h1').text == '<i>title'
    assert driver.find_element('id', 'count').text == '0 decided, 2 earlier'
    driver.find_element('css selector', 'article:nth-child(2) input[value=negative]').click()
    driver.find_element('id', 'save').click()
    with open(saved(tmp_path), encoding='utf-8', newline='') as file:
        assert list(csv.reader(file))[1:] == [earlier[0], [*earlier[1][:2], 'negative']]
