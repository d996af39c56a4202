"""Write a trained classifier, or a detector with a dense head such as FCOS or ATSS, as an ONNX file."""

import argparse
import importlib.util
import json
import logging
import sys
from pathlib import Path

import numpy as np
from mmengine.config import Config

from asl_mmdet.checkpoint import is_address
from asl_mmdet.command_line import add_cfg_options, file_to_write, probability, read_config
from asl_mmdet.inferencer import image_files, trained_model
from asl_mmdet.models import ImageClassifier
from asl_mmdet.onnx_export import export_onnx
from asl_mmdet.progress import track

# As far as a picture's predictions may be from those of torch: pixels, probability.
BOX_TOLERANCE, SCORE_TOLERANCE = 0.5, 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', metavar='CONFIG', help='config file')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint file, or its address')
    parser.add_argument('--out', type=file_to_write, required=True, metavar='FILE.onnx', help='file to write')
    parser.add_argument(
        '--score-thr',
        type=probability,
        help="probability from which on a label or object counts (default: the head's; detectors: 0.3)",
    )
    parser.add_argument(
        '--check',
        metavar='IMAGE_OR_FOLDER',
        help='compare with the predictions of the checkpoint on these pictures; exit status 1 where they differ',
    )
    add_cfg_options(parser)
    args = parser.parse_args()
    cfg = read_config(args.config, args.cfg_options)
    if not is_address(args.checkpoint) and not Path(args.checkpoint).is_file():
        parser.error(f'there is no file {args.checkpoint}')
    if args.check and importlib.util.find_spec('onnxruntime') is None:
        parser.error('--check compares with onnxruntime, which is not installed: pip install onnxruntime')
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)  # it tells which operators of torchvision are missing
    try:
        files = image_files(args.check) if args.check else []
        model = trained_model(cfg, args.checkpoint)
        export_onnx(cfg, model, args.out, args.score_thr)
    except (FileNotFoundError, ImportError, KeyError, ValueError) as error:
        parser.exit(1, f'{error.args[-1] if isinstance(error, KeyError) else error}\n')
    print(f'{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, {len(model.dataset_meta["classes"])} classes')
    if files:
        sys.exit(check(cfg, args, files, isinstance(model, ImageClassifier)))


def pair(expected: list[tuple], found: list[tuple]) -> tuple[list[tuple], list[tuple]]:
    """Pairs of equal labels whose boxes are nearest, and what is left of both sides."""
    pairs, left, found = [], [], list(found)
    for one in expected:
        rivals = [i for i, other in enumerate(found) if other[0] == one[0]]
        if rivals:
            gaps = [np.abs(np.subtract(found[i][1:], one[1:])).max() for i in rivals]
            pairs.append((one, found.pop(rivals[int(np.argmin(gaps))])))
        else:
            left.append(one)
    return pairs, left + found


def check(cfg: Config, args: argparse.Namespace, files: list[str], classifier: bool) -> int:
    """Compare what onnx_predict.py and infer.py find in every picture that can be read; the exit status."""
    import onnxruntime
    from infer import infer
    from onnx_predict import predict

    session = onnxruntime.InferenceSession(args.out)
    score_thr = json.loads(session.get_modelmeta().custom_metadata_map['score_thr'])
    results, _ = infer(cfg, args.checkpoint, files, classifier, score_thr, 'cpu')
    number, alone, box_gap, score_gap = 0, 0, 0, 0
    for result in track(results, 'Checking'):
        file, expected = result['image'], result['labels' if classifier else 'objects']
        expected = [(one['label'], one['score'], *one.get('box', ())) for one in expected]
        pairs, left = pair(expected, predict(session, file))
        number += len(expected)
        # One side may see a score just below the threshold.
        for name, score, *_ in left:
            if score > (score_thr or 0) + SCORE_TOLERANCE:
                alone += 1
                print(f'{file}: {name} {score:.4f} is found by one of the two alone')
        for (_, score, *box), (_, other_score, *other_box) in pairs:
            score_gap = max(score_gap, abs(score - other_score))
            box_gap = max([box_gap, *np.abs(np.subtract(box, other_box))])
    print(
        f'{len(results)} pictures, {number} labels, {alone} found by one of the two alone; '
        f'boxes differ by at most {box_gap:.2g} pixels, scores by {score_gap:.2g}'
    )
    if results and not number and not alone:
        print(
            f'nothing was compared: no score reached {score_thr} in any picture. Lower it with --score-thr, or give '
            'other pictures'
        )
    return int(not results or alone > 0 or box_gap > BOX_TOLERANCE or score_gap > SCORE_TOLERANCE)


if __name__ == '__main__':
    main()
