"""How well hidden positives are found again: ASL's p*, cross-entropy's probabilities, and confident learning.

For each seed a share of the training set's positives is hidden, by a corrections file that calls them negative. On
what is left CONFIG is trained with its own loss, with cross-entropy, and with cross-entropy on the other parts of a
split, which gives each image probabilities that its labels had no part in. Then all negatives are ranked, and those
that were hidden are to come first. cleanlab (pip install cleanlab) is wanted for confident learning.

WORK_DIR/results.md compares them. What is finished is not trained again; other settings want another WORK_DIR.
"""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from audit_labels import last_epochs, predict, require_classifier, training_set
from benchmarking import table
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from sweep import SweepError, check_origin, flat, write_whole
from torch import nn

from asl_mmdet.command_line import add_cfg_options, build_runner, exit_on_known_faults, positive, read_config
from asl_mmdet.datasets import MultiLabelDataset
from asl_mmdet.datasets.corrections import HEADER
from asl_mmdet.evaluation.multi_label import average_precision, rank_positives
from asl_mmdet.gradient_analysis import mislabelled_point
from asl_mmdet.inferencer import MultiLabelInferencer
from asl_mmdet.label_audit import missing_positives
from asl_mmdet.models import AsymmetricLoss

CROSS_ENTROPY = dict(type='AsymmetricLoss', gamma_pos=0.0, gamma_neg=0.0, clip=0.0)
FIRST = (50, 200, 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='config file of a classifier with ASL')
    parser.add_argument('--work-dir', type=Path, required=True)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--hide', type=float, default=0.1, help='share of the positives (default: %(default)s)')
    parser.add_argument(
        '--epochs', type=positive, default=5, help='last epochs that are averaged (default: %(default)s)'
    )
    parser.add_argument('--folds', type=int, default=3, help='parts of the split (default: %(default)s)')
    add_cfg_options(parser)
    args = parser.parse_args()
    if not 0 < args.hide < 1 or args.folds < 2:
        parser.error('--hide lies between 0 and 1, --folds is 2 or more')
    try:
        import cleanlab  # noqa: F401
    except ImportError:
        parser.error('confident learning wants cleanlab: pip install cleanlab')
    cfg = read_config(args.config, args.cfg_options)
    init_default_scope('mmdet')
    try:
        check_settings(cfg, args)
    except (SweepError, ValueError, OSError) as error:
        parser.exit(1, f'{error}\n')
    with exit_on_known_faults():
        measured = [measure(cfg, seed, args) for seed in args.seeds]
    text = report(measured)
    (args.work_dir / 'results.md').write_text(text, encoding='utf-8')
    print(text)


def check_settings(cfg: Config, args: argparse.Namespace) -> None:
    """Refuses what would show after hours of training, or not at all.

    Raises:
        ValueError: the config trains no classifier, or with a loss that has no p*.
        SweepError: the networks in the work dir were trained with other settings, on labels that are hidden otherwise.
    """
    require_classifier(cfg, args.config)
    loss = loss_of(cfg)
    if (
        not isinstance(loss, AsymmetricLoss)
        or mislabelled_point(loss.gamma_neg, loss.clip, loss.detach_focusing) is None
    ):
        raise ValueError(
            f'{args.config}: model.head.loss is {loss}, whose gradient has no p*: give a config with AsymmetricLoss, '
            'gamma_neg=4, clip=0.05'
        )
    settings = {f'--{name}': getattr(args, name) for name in ('hide', 'epochs', 'folds')}
    made_with = dict(base=str(Path(args.config).resolve()), overrides=settings, config=flat(cfg.to_dict()))
    origin = json.loads(json.dumps(made_with, default=repr))
    path = args.work_dir / 'settings.json'
    if check_origin(path, origin) is None:
        args.work_dir.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(origin, indent=2))


def loss_of(cfg: Config) -> nn.Module:
    return MODELS.build(cfg.model.head).loss_module


def measure(cfg: Config, seed: int, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Figures of each ranking after one seed's runs."""
    folder = args.work_dir / f'seed{seed}'
    folder.mkdir(parents=True, exist_ok=True)
    complete = training_set(cfg)
    rng = np.random.default_rng(seed)
    hidden = hide(complete, args.hide, rng, folder / 'hidden.csv')
    parts = rng.permutation(len(complete)) % args.folds
    cfg = Config(cfg.to_dict())
    cfg.merge_from_dict(
        {
            'train_dataloader.dataset.corrections': str((folder / 'hidden.csv').resolve()),
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'test_dataloader.num_workers': 0,
            'test_dataloader.persistent_workers': False,
            'randomness.seed': seed,
            'default_hooks.checkpoint': dict(
                type='SafeCheckpointHook', interval=1, max_keep_ckpts=args.epochs, save_best=None
            ),
            'val_cfg': None,
            'val_dataloader': None,
            'val_evaluator': None,
        }
    )
    asl, targets = train_and_predict(cfg, folder / 'asl', args.epochs)
    loss = loss_of(cfg)
    cfg.model.head.loss = CROSS_ENTROPY
    ce, _ = train_and_predict(cfg, folder / 'cross-entropy', args.epochs)
    out_of_sample = np.empty_like(ce)
    for part in range(args.folds):
        held_out = np.flatnonzero(parts == part)
        cfg.train_dataloader.dataset.indices = np.flatnonzero(parts != part).tolist()
        out_of_sample[:, held_out] = train_and_predict(cfg, folder / f'part{part}', args.epochs, held_out)[0]
    rankings = {
        f'ASL, mean of {args.epochs} epochs': asl.mean(0),
        'ASL, last epoch': asl[-1],
        f'cross-entropy, mean of {args.epochs} epochs': ce.mean(0),
        'cross-entropy, last epoch': ce[-1],
        f'cross-entropy out of sample, mean of {args.epochs} epochs': out_of_sample.mean(0),
        'confident learning, out of sample': confident_learning(out_of_sample.mean(0), targets),
        'confident learning, in sample': confident_learning(ce.mean(0), targets),
    }
    figures = {name: recovery(scores, targets, hidden) for name, scores in rankings.items()}
    suspects = missing_positives(asl, targets, loss.gamma_neg, loss.clip, loss.detach_focusing)
    found = hidden[suspects.images, suspects.classes]
    figures['beyond p*'] = dict(
        hidden=int(hidden.sum()),
        negatives=int((targets == 0).sum()),
        suspects=len(suspects),
        precision=found.mean() if len(found) else np.nan,
        recall=found.sum() / hidden.sum(),
    )
    return figures


def hide(dataset: MultiLabelDataset, share: float, rng: np.random.Generator, path: Path) -> np.ndarray:
    """Writes the corrections that hide this share of the positives; (N, C) bool where they are."""
    labels, classes = dataset.data_list.lists['gt_label'], dataset.metainfo['classes']
    chosen = np.sort(rng.choice(len(labels.values), round(share * len(labels.values)), replace=False))
    rows, columns = labels.rows()[chosen], labels.values[chosen]
    hidden = np.zeros((len(dataset), len(classes)), dtype=bool)
    hidden[rows, columns] = True
    with open(path, 'w', encoding='utf-8', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for row, column in zip(rows, columns):
            writer.writerow([dataset.data_list.names[row].decode(), classes[column], 'negative'])
    return hidden


def train_and_predict(
    cfg: Config, folder: Path, epochs: int, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (E, N, C) and targets (N, C) of the training set, or of some of its images that were not in it."""
    kept = folder / 'probabilities.npz'
    if not kept.is_file():
        cfg = Config(dict(cfg.to_dict(), work_dir=str(folder), experiment_name=f'{folder.parent.name}_{folder.name}'))
        build_runner(cfg, 'train').train()
        checkpoints = last_epochs(folder / f'epoch_{cfg.train_cfg.max_epochs}.pth', epochs)
        models = [MultiLabelInferencer(cfg, path, show_progress=False).model for path in checkpoints]
        cfg.train_dataloader.dataset.pop('indices', None)
        dataset = training_set(cfg)
        probabilities, targets = predict(
            models, dataset if rows is None else dataset.get_subset(rows.tolist()), cfg.test_dataloader
        )
        np.savez(kept, probabilities=probabilities, targets=targets)
        for path in checkpoints:
            path.unlink()
    with np.load(kept) as arrays:
        return arrays['probabilities'], arrays['targets']


def confident_learning(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Scores (N, C) of negatives: those that cleanlab finds wrong come first, by self-confidence, then the others."""
    from cleanlab.multilabel_classification.filter import find_multilabel_issues_per_class

    labels = [np.flatnonzero(row == 1).tolist() for row in targets]
    return probabilities + find_multilabel_issues_per_class(labels, probabilities, n_jobs=1)


def recovery(scores: np.ndarray, targets: np.ndarray, hidden: np.ndarray) -> dict[str, float]:
    """Precision among the first so many negatives, and average precision over all of them."""
    negative = targets == 0
    order = np.argsort(-scores[negative], kind='stable')
    found = hidden[negative][order]
    ranking = rank_positives(torch.from_numpy(scores), torch.from_numpy(np.where(negative, hidden, -1)), micro=True)
    return {
        **{f'precision at {number:,}': found[:number].mean() for number in FIRST},
        'average precision': average_precision(ranking).item(),
    }


def report(measured: Sequence[dict[str, dict[str, float]]]) -> str:
    """Mean and sample standard deviation over the seeds, in percent."""
    *names, limit = measured[0]
    columns = list(measured[0][names[0]])
    rows = [[name, *(spread([100 * seed[name][column] for seed in measured]) for column in columns)] for name in names]
    beyond = {key: spread([seed[limit][key] for seed in measured]) for key in measured[0][limit]}
    return (
        table(['negatives ranked by', *columns], rows)
        + f'\n\n{len(measured)} seeds. {beyond["hidden"]} positives hidden among {beyond["negatives"]} negatives. '
        f"Beyond ASL's p*: {beyond['suspects']}, precision {beyond['precision']}, recall {beyond['recall']}.\n"
    )


def spread(values: Sequence[float]) -> str:
    """Mean ± deviation of the numbers among them; NaN is what a seed does not define."""
    numbers = [value for value in values if not np.isnan(value)]
    if not numbers:
        return 'undefined'
    deviation = np.std(numbers, ddof=1) if len(numbers) > 1 else 0.0
    of = f' ({len(numbers)} of {len(values)} seeds)' if len(numbers) < len(values) else ''
    return f'{np.mean(numbers):.4g} ± {deviation:.2g}{of}'


if __name__ == '__main__':
    main()
