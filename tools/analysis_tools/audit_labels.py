"""Rank the labels of a training set that a classifier trained with ASL disbelieves, for somebody to look at.

Suspected are negatives whose probability lies beyond p*, from where on the gradient of ASL falls (section 2.5 of the
paper), and positives whose probability stays below the mean over their class's negatives. Probabilities are those of
the training images without augmentation (the pipeline of test_dataloader), averaged over the checkpoints of the last
epochs: those that are named, or, where one epoch_N.pth is, it and the ones before it in its folder.

OUT_DIR gets audit.csv, all suspects, and audit.html: thumbnails, probabilities and tick boxes, and a button that saves
corrections.csv, which every multi-label data set takes as corrections='corrections.csv'.
"""

import argparse
import csv
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import nn

from asl_mmdet.checkpoint import read_checkpoint
from asl_mmdet.command_line import (
    add_cfg_options,
    check_temporary_folder,
    exit_on_known_faults,
    folder_to_write,
    positive,
    present_device,
    read_config,
)
from asl_mmdet.datasets import AnnotationError, MultiLabelDataset
from asl_mmdet.datasets.corrections import read_corrections
from asl_mmdet.inferencer import MultiLabelInferencer, is_classifier
from asl_mmdet.label_audit import Suspects, doubtful_positives, missing_positives
from asl_mmdet.label_audit_page import audit_page
from asl_mmdet.models import AsymmetricLoss
from asl_mmdet.progress import track
from asl_mmdet.report.page import thumbnail
from asl_mmdet.structures import dense_targets

THUMBNAIL = 160  # pixels, the longer side
COLUMNS = ('image', 'class', 'label', 'p_mean', 'p_std', 'p_star', 'p_negatives', 'rank', 'suspicion')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='config file of a classifier')
    parser.add_argument('checkpoints', metavar='CHECKPOINT', nargs='+', type=Path, help='checkpoint files')
    parser.add_argument(
        '--epochs',
        type=positive,
        default=5,
        help='how many checkpoints to average where one is named (default: %(default)s)',
    )
    parser.add_argument(
        '--missing',
        type=int,
        default=0,
        metavar='N',
        help='where fewer negatives lie beyond p*, add the most probable others up to this number (default: 0)',
    )
    parser.add_argument('--out-dir', type=folder_to_write, help='default: label_audit beside the last checkpoint')
    parser.add_argument(
        '--page-limit', type=positive, default=1000, help='suspects of each kind on the page (default: %(default)s)'
    )
    parser.add_argument('--device', type=present_device, help='such as cuda:1 (default: a GPU where there is one)')
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.missing < 0:
        parser.error(f'--missing {args.missing}: give a number of 0 or more')
    for path in args.checkpoints:
        if not path.is_file():
            parser.error(f'there is no file {path}')
    cfg = read_config(args.config, args.cfg_options)
    check_temporary_folder(cfg, 'test')
    init_default_scope('mmdet')
    with exit_on_known_faults():
        try:
            audit(cfg, args)
        except (ValueError, OSError) as error:
            if isinstance(error, AnnotationError):
                raise
            parser.exit(1, f'{error}\n')


def audit(cfg: Config, args: argparse.Namespace) -> None:
    require_classifier(cfg, args.config)
    checkpoints = args.checkpoints if len(args.checkpoints) > 1 else last_epochs(args.checkpoints[0], args.epochs)
    models = [MultiLabelInferencer(cfg, path, args.device, show_progress=False).model for path in checkpoints]
    gamma_neg, clip, detach_focusing = loss_of(models[-1], checkpoints[-1])
    dataset = training_set(cfg)
    trained_on = models[-1].dataset_meta['classes']
    if dataset.metainfo['classes'] != trained_on:
        raise ValueError(
            f'{checkpoints[-1]} was trained on the classes {", ".join(trained_on[:5])} ... and the data set has '
            f'{", ".join(dataset.metainfo["classes"][:5])} ...: they must be the same, in the same order'
        )
    probabilities, targets = predict(models, dataset, cfg.test_dataloader)
    missing = missing_positives(probabilities, targets, gamma_neg, clip, detach_focusing, args.missing)
    doubtful = doubtful_positives(probabilities, targets)

    beyond = np.count_nonzero(missing.p_mean > missing.limit)
    averaged = (
        f'{len(checkpoints)} checkpoints, {", ".join(path.name for path in checkpoints)}'
        if len(checkpoints) > 1
        else f'one checkpoint alone, {checkpoints[0].name}'
    )
    notes = [
        f'Probabilities of {len(dataset):,} training images without augmentation, averaged over {averaged}.',
        f'Loss of {args.config}: gamma_neg={in_words(gamma_neg)}, clip={clip:g}.',
        f'{beyond:,} of {np.count_nonzero(targets == 0):,} negatives lie beyond p*: suspected missing positives.'
        + (
            f' {len(missing) - beyond:,} of suspicion 0 follow, the most probable others.'
            if len(missing) > beyond
            else ''
        ),
        f'{len(doubtful):,} of {np.count_nonzero(targets == 1):,} positives lie below the mean over the negatives of '
        'their class in every checkpoint: doubtful positives.',
    ]
    out_dir = args.out_dir or checkpoints[-1].parent / 'label_audit'
    out_dir.mkdir(parents=True, exist_ok=True)
    rows = [*table(missing, 0, dataset), *table(doubtful, 1, dataset)]
    write_csv(out_dir / 'audit.csv', rows)
    shown = [row for row in rows if row['rank'] <= args.page_limit]
    if len(shown) < len(rows):
        notes.append(
            f'The page shows {len(shown):,} of {len(rows):,} suspects, the first {args.page_limit:,} of each kind; '
            f'{len(rows) - len(shown):,} are left out here and stand in audit.csv.'
        )
    thumbnails = {
        image: thumbnail(str(Path(dataset.image_folder, image)), THUMBNAIL)
        for image in track(dict.fromkeys(row['image'] for row in shown), 'Thumbnails')
    }
    earlier = read_corrections(dataset.corrections) if dataset.corrections else []
    page = audit_page(
        f'Label audit of {dataset.ann_file}',
        notes,
        shown,
        thumbnails,
        [[image.decode(), name, decision] for _, image, name, decision in earlier],
    )
    (out_dir / 'audit.html').write_text(page, encoding='utf-8')
    print(*notes, f'{out_dir / "audit.csv"} and {out_dir / "audit.html"} are written.', sep='\n')


def require_classifier(cfg: Config, path: str) -> None:
    if not is_classifier(cfg, path):
        raise ValueError(
            f'{path}: {cfg.model.type} is no ImageClassifier, and labels of images are audited with a classifier; '
            'train one on the same COCO file, as configs/multi_label/tresnet-narrow_asl_shapes.py is'
        )


def last_epochs(checkpoint: Path, number: int) -> list[Path]:
    """The checkpoint and those of the epochs before it in its folder, so many together, in order."""
    epoch = re.fullmatch(r'epoch_(\d+)\.pth', checkpoint.name)
    if not epoch:
        return [checkpoint]
    found = {int(path.stem[6:]): path for path in checkpoint.parent.glob('epoch_*.pth') if path.stem[6:].isdigit()}
    paths = [found[at] for at in sorted(found) if at <= int(epoch[1])][-number:]
    if len(paths) < number:
        print(
            f'{len(paths)} of --epochs {number} checkpoints are there: the training keeps more with --cfg-options '
            f'default_hooks.checkpoint.interval=1 default_hooks.checkpoint.max_keep_ckpts={number}',
            file=sys.stderr,
        )
    return paths


def loss_of(model: nn.Module, checkpoint: Path) -> tuple[float | np.ndarray, float, bool]:
    """gamma_neg, clip and detach_focusing of a classifier's loss: the config's, or what a hook made of them."""
    loss = model.head.loss_module
    if not isinstance(loss, AsymmetricLoss):
        raise ValueError(
            f'model.head.loss is {type(loss).__name__}, whose gradient has no p*: train with AsymmetricLoss, '
            'gamma_neg=4, clip=0.05'
        )
    content = read_checkpoint(checkpoint, 'cpu')
    state = content.get('state_dict', content)
    gamma_neg, clip = (
        state.get(f'head.loss_module.{name}', torch.tensor(getattr(loss, name), dtype=torch.float64)).double().numpy()
        for name in ('gamma_neg', 'clip')
    )
    return gamma_neg if gamma_neg.ndim else gamma_neg.item(), clip.item(), loss.detach_focusing


def in_words(gamma_neg: float | np.ndarray) -> str:
    if np.ndim(gamma_neg) == 0:
        return str(gamma_neg)
    return f'one for each class, {gamma_neg.min():.3g} to {gamma_neg.max():.3g}'


def training_set(cfg: Config) -> MultiLabelDataset:
    """The labels of train_dataloader with the pipeline of test_dataloader."""
    settings = cfg.train_dataloader.dataset
    while 'dataset' in settings:  # RepeatDataset, ClassBalancedDataset
        settings = settings.dataset
    dataset = DATASETS.build(dict(settings, pipeline=cfg.test_dataloader.dataset.pipeline))
    if not isinstance(dataset, MultiLabelDataset):
        raise ValueError(f'train_dataloader.dataset is {settings.type}: the audit takes one multi-label data set')
    dataset.full_init()
    # From here on an unreadable image is an error, and no random other one takes its place.
    dataset.test_mode = True
    return dataset


@torch.no_grad()
def predict(models: Sequence[nn.Module], dataset: MultiLabelDataset, loader: dict) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (E, N, C) float32 of E models, and targets (N, C) of 1, 0 and -1."""
    names = ('batch_size', 'num_workers', 'persistent_workers', 'pin_memory')
    batches = Runner.build_dataloader(
        dict(
            {name: loader[name] for name in names if name in loader},
            dataset=dataset,
            sampler=dict(type='DefaultSampler', shuffle=False),
        )
    )
    probabilities, targets = [], []
    for batch in track(batches, 'Probabilities'):
        targets.append(dense_targets(batch['data_samples'], len(dataset.metainfo['classes']))[0])
        scores = [[sample.pred_score for sample in model.test_step(batch)] for model in models]
        probabilities.append(torch.stack([torch.stack(one).float().cpu() for one in scores]))
    return torch.cat(probabilities, 1).numpy(), torch.cat(targets).numpy()


def table(suspects: Suspects, label: int, dataset: MultiLabelDataset) -> list[dict]:
    names, classes = dataset.data_list.names, dataset.metainfo['classes']
    columns = (suspects.images, suspects.classes, suspects.p_mean, suspects.p_std, suspects.limit, suspects.suspicion)
    return [
        {
            'image': names[image].decode(),
            'class': classes[column],
            'label': label,
            'rank': rank,
            **{name: round(value, 6) for name, value in zip(('p_mean', 'p_std', 'limit', 'suspicion'), values)},
        }
        for rank, (image, column, *values) in enumerate(zip(*(column.tolist() for column in columns)), 1)
    ]


def write_csv(path: Path, rows: Sequence[dict]) -> None:
    """p_star is the limit of negatives, p_negatives, the mean over the class's negatives, that of positives."""
    with open(path, 'w', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS, restval='')
        writer.writeheader()
        for row in rows:
            limit = 'p_negatives' if row['label'] else 'p_star'
            writer.writerow({limit if name == 'limit' else name: value for name, value in row.items()})


if __name__ == '__main__':
    main()
