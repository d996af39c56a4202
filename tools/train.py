"""Train what a config describes, detector or classifier."""

import argparse
import sys
from pathlib import Path

from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.device import get_device
from mmengine.optim import AmpOptimWrapper

from asl_mmdet.checkpoint import check_start, has_begun
from asl_mmdet.command_line import (
    add_config_arguments,
    build_runner,
    exit_on_known_faults,
    load_config,
    make_resumable,
    stop_at_non_finite,
)
from asl_mmdet.dry_run import DryRunError, dry_run

AMP = ('AmpOptimWrapper', AmpOptimWrapper)
# What mmengine has no mixed precision for.
WITHOUT_AMP = ('cpu', 'mps')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate by the batch size over the config's auto_scale_lr.base_batch_size",
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from CHECKPOINT or, without one, from the latest intact one of the work dir, where there is any',
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help='build everything, take a few steps, report on data, model, memory and time, and leave nothing behind',
    )
    args = parser.parse_args()
    if args.check and (args.resume or args.launcher != 'none'):
        parser.error('--check tries the beginning of a run in one process: leave out --resume and --launcher')

    setup_cache_size_limit_of_dynamo()
    cfg = load_config(args)
    if args.amp:
        if get_device() in WITHOUT_AMP or 'optim_wrapper' not in cfg:
            parser.error("--amp needs a GPU, of another kind than Apple's, and an optim_wrapper in the config")
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'
    elif get_device() in WITHOUT_AMP and (cfg.get('optim_wrapper') or {}).get('type') in AMP:
        sys.exit(
            "optim_wrapper.type=AmpOptimWrapper, mixed precision, needs a GPU, of another kind than Apple's: without "
            'one add --cfg-options optim_wrapper.type=OptimWrapper'
        )
    if args.auto_scale_lr:
        if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
            parser.error(f'--auto-scale-lr: {args.config} lacks auto_scale_lr=dict(enable=False, base_batch_size=...)')
        cfg.auto_scale_lr.enable = True
    if args.resume not in (None, 'auto'):
        cfg.resume, cfg.load_from = True, args.resume
    elif args.resume and (has_begun(cfg.work_dir) or not cfg.get('load_from')):
        cfg.resume, cfg.load_from = True, None
    if cfg.get('load_from') and '://' not in cfg.load_from and not Path(cfg.load_from).expanduser().is_file():
        sys.exit(f'no checkpoint file {cfg.load_from}')
    make_resumable(cfg)
    stop_at_non_finite(cfg)
    if args.check:
        try:
            print('\n'.join(dry_run(cfg)), '\nfit to be trained', sep='')
        except DryRunError as error:
            sys.exit(f'{args.config} is not fit to be trained: {error}')
        return
    with exit_on_known_faults():
        runner = build_runner(cfg, 'train', 'val')
        if cfg.get('load_from'):
            check_start(runner.model, cfg.load_from, cfg.get('resume'))
        runner.train()


if __name__ == '__main__':
    main()
