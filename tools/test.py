"""Evaluate a checkpoint on the test split of a config, detector or classifier."""

import argparse
from pathlib import Path

from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.dist import is_main_process
from mmengine.logging import print_log

from asl_mmdet.checkpoint import check_classes, is_address, load_all_weights, read_checkpoint
from asl_mmdet.command_line import (
    add_config_arguments,
    build_runner,
    exit_on_known_faults,
    file_to_write,
    load_config,
    one_or_more,
)
from asl_mmdet.hooks import FastInferenceHook
from asl_mmdet.report import report_metric, write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file, or its address')
    parser.add_argument(
        '--out', type=file_to_write, metavar='FILE.pkl', help='write the predictions for evaluation elsewhere'
    )
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', help='draw the predictions into this folder, under work_dir/timestamp')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds for which --show shows a picture')
    parser.add_argument('--fast', action='store_true', help='fold BN and compile the network; same results')
    parser.add_argument(
        '--report',
        type=Path,
        metavar='DIR',
        help='write DIR/report.html: curves, thresholds and their cost, classes, best and worst pictures, in one file',
    )
    args = parser.parse_args()
    if args.out and args.out.suffix not in ('.pkl', '.pickle'):
        parser.error(f'--out {args.out}: predictions are written as .pkl or .pickle')
    cfg = load_config(args)
    if not is_address(args.checkpoint) and not Path(args.checkpoint).is_file():
        parser.error(f'no checkpoint file {args.checkpoint}')

    setup_cache_size_limit_of_dynamo()
    # The config in the work dir of a resumed run says so, and training would be built up to go on with.
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.show or args.show_dir:
        cfg = trigger_visualization_hook(cfg, args)
    if args.report:
        try:
            report_metric(one_or_more(cfg.get('test_evaluator')))
            args.report.mkdir(parents=True, exist_ok=True)
        except (ValueError, OSError) as error:
            parser.error(f'--report {args.report}: {error}')
    with exit_on_known_faults():
        runner = build_runner(cfg, 'test')
        content = read_checkpoint(args.checkpoint)
        load_all_weights(runner.model, content, args.checkpoint)
        if runner.test_loop is not None:  # Runner.test says what is missing
            check_classes(content, runner.test_loop.dataloader.dataset.metainfo.get('classes', ()), args.checkpoint)
        if args.out:
            runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=str(args.out)))
        if args.fast:
            runner.register_hook(FastInferenceHook())
        metrics = runner.test()
        if args.report and is_main_process():
            evaluation = next(filter(None, (getattr(m, 'evaluation', None) for m in runner.test_evaluator.metrics)))
            path = write_report(args.report, evaluation, metrics, Path(args.config), Path(args.checkpoint))
            print_log(f'Report: {path}', logger='current')


if __name__ == '__main__':
    main()
