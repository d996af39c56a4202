"""Label images with a trained classifier, or find objects with a trained detector."""

import argparse
import csv
import json
import sys
from functools import partial
from pathlib import Path

import mmcv
from mmengine.config import Config

from asl_mmdet.checkpoint import is_address
from asl_mmdet.command_line import (
    add_cfg_options,
    file_to_write,
    folder_to_write,
    positive,
    present_device,
    probability,
    read_config,
)
from asl_mmdet.datasets import AnnotationError, LoadNamedImage
from asl_mmdet.datasets.detection import named_picture
from asl_mmdet.detector_inferencer import DetectorInferencer
from asl_mmdet.fast_inference import fast_inference
from asl_mmdet.inferencer import OBJECT_SCORE_THR, MultiLabelInferencer, image_files, is_classifier
from asl_mmdet.progress import track


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('images', metavar='IMAGE_OR_FOLDER', help='image file, or folder of images')
    parser.add_argument('config', metavar='CONFIG', help='config file')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint file, or its address')
    parser.add_argument(
        '--out',
        type=file_to_write,
        metavar='FILE',
        help='write the results as .json, or as .csv; otherwise they are printed',
    )
    parser.add_argument(
        '--show-dir', type=folder_to_write, metavar='FOLDER', help='write pictures with the results drawn on them'
    )
    parser.add_argument(
        '--score-thr',
        type=probability,
        help="probability from which on a label or object counts (default: the head's; detectors: 0.3)",
    )
    parser.add_argument('--all-scores', action='store_true', help='classifiers, JSON: probabilities of all classes')
    parser.add_argument('--batch-size', type=positive, default=1)
    parser.add_argument('--device', type=present_device, help='such as cuda:1 (default: a GPU where there is one)')
    parser.add_argument(
        '--fast',
        action='store_true',
        help='fold BN and compile the network; same results, and pays from hundreds of images of few sizes on',
    )
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.out and args.out.suffix not in ('.json', '.csv'):
        parser.error(f'--out {args.out}: results are written as .json or .csv')
    if args.all_scores and (not args.out or args.out.suffix != '.json'):
        parser.error('--all-scores: probabilities of all classes are written as JSON, --out FILE.json')
    cfg = read_config(args.config, args.cfg_options)
    if not is_address(args.checkpoint) and not Path(args.checkpoint).is_file():
        parser.error(f'there is no file {args.checkpoint}')
    try:
        files = image_files(args.images)
        classifier = is_classifier(cfg, args.config)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))

    if args.all_scores and not classifier:
        parser.error('--all-scores is for classifiers: of a detector every object has a score')
    try:
        results, skipped = infer(
            cfg,
            args.checkpoint,
            files,
            classifier,
            args.score_thr,
            args.device,
            args.batch_size,
            args.fast,
            args.show_dir,
            args.all_scores,
        )
    except ValueError as error:
        parser.exit(1, f'{error}\n')

    write(results, args.out)
    print(
        f'{len(results)} of {len(files)} images',
        f', results in {args.out}' if args.out else '',
        f', pictures in {args.show_dir}' if args.show_dir else '',
        sep='',
    )
    if skipped:
        print(f'{len(skipped)} could not be read or prepared: {", ".join(skipped)}', file=sys.stderr)
    if not results:
        parser.exit(1)


def infer(
    cfg: Config,
    checkpoint: str,
    files: list[str],
    classifier: bool,
    score_thr: float | None,
    device: str | None,
    batch_size: int = 1,
    fast: bool = False,
    show_dir: Path | None = None,
    all_scores: bool = False,
) -> tuple[list[dict], list[str]]:
    """What is found in each picture, as it is written, and the files that could not be read or prepared."""
    if classifier:
        if score_thr is not None:
            cfg.model.head.thr = score_thr
        inferencer = MultiLabelInferencer(cfg, checkpoint, device, show_progress=False)
        find = partial(classify, inferencer, all_scores=all_scores)
    else:
        inferencer = DetectorInferencer(cfg, checkpoint, device, show_progress=False)
        find = partial(detect, inferencer, score_thr=OBJECT_SCORE_THR if score_thr is None else score_thr)
    if fast:
        fast_inference(inferencer.model, compile=True)
    results, skipped = [], []
    for start in track(range(0, len(files), batch_size), 'Inference'):
        found, left_out = find(files[start : start + batch_size], show_dir)
        results += found
        skipped += left_out
    return results, skipped


def classify(
    inferencer: MultiLabelInferencer, batch: list[str], show_dir: Path | None, all_scores: bool
) -> tuple[list[dict], list[str]]:
    found = inferencer(batch, batch_size=len(batch), picture_dir=show_dir, all_scores=all_scores)
    return found['predictions'], [item['image'] for item in found['skipped']]


def detect(
    inferencer: DetectorInferencer, batch: list[str], show_dir: Path | None, score_thr: float
) -> tuple[list[dict], list[str]]:
    classes, load = inferencer.model.dataset_meta['classes'], LoadNamedImage()
    files, images, inputs, results, skipped = [], [], [], [], []
    for file in batch:
        try:
            image = load(dict(img_path=file))['img']
            with named_picture(file, 'cannot be prepared'):
                inputs.append(inferencer.pipeline(image))
            files.append(file)
            images.append(image)
        except AnnotationError as error:
            print(error, file=sys.stderr)
            skipped.append(file)
    if not files:
        return results, skipped
    samples = inferencer.forward(inferencer.collate_fn(inputs))
    drawn = inferencer.visualize(images, samples, return_vis=show_dir is not None, pred_score_thr=score_thr)
    predictions = inferencer.postprocess(samples, no_save_pred=True)['predictions']
    for i, (file, prediction) in enumerate(zip(files, predictions)):
        objects = zip(prediction['labels'], prediction['scores'], prediction['bboxes'])
        results.append(
            dict(
                image=file,
                objects=[
                    dict(label=classes[label], index=label, score=score, box=box)
                    for label, score, box in objects
                    if score >= score_thr
                ],
            )
        )
        if show_dir:
            # mmdet draws on arrays as they are, here in the order of OpenCV.
            mmcv.imwrite(drawn[i], str(show_dir / Path(file).name))
    return results, skipped


def write(results: list[dict], out: Path | None) -> None:
    """JSON as it is; CSV with a line for each image of a classifier, or for each object of a detector."""
    if out is None:
        for result in results:
            found = result['labels'] if 'labels' in result else result['objects']
            print(f'{result["image"]}: ' + ', '.join(f'{one["label"]} {one["score"]:.2f}' for one in found))
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == '.json':
        out.write_text(json.dumps(results, indent=1, ensure_ascii=False), encoding='utf-8')
        return
    with open(out, 'w', encoding='utf-8', newline='') as file:
        writer = csv.writer(file)
        if results and 'labels' in results[0]:
            writer.writerow(['image', 'labels', 'scores'])
            for result in results:
                writer.writerow(
                    [
                        result['image'],
                        ';'.join(label['label'] for label in result['labels']),
                        ';'.join(f'{label["score"]:.4f}' for label in result['labels']),
                    ]
                )
        else:
            writer.writerow(['image', 'label', 'score', 'x1', 'y1', 'x2', 'y2'])
            for result in results:
                for one in result['objects']:
                    writer.writerow(
                        [
                            result['image'],
                            one['label'],
                            f'{one["score"]:.4f}',
                            *(f'{value:.1f}' for value in one['box']),
                        ]
                    )


if __name__ == '__main__':
    main()
