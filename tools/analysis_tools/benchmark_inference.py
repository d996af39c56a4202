"""Speed of classifiers and detectors as PyTorch runs them, with BN folded, compiled, and in onnxruntime.

All take turns in one process on the same images, whole predictions with NMS; a figure is the median over the rounds, as
a multiple of plain PyTorch's speed. Weights are random, but for norms that scale and shift.
"""

import argparse
import copy
import tempfile
from pathlib import Path

import torch
from benchmark_backbone import randomise
from benchmarking import median_times, table
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope

from asl_mmdet.command_line import read_config
from asl_mmdet.fast_inference import fast_inference
from asl_mmdet.models import ImageClassifier
from asl_mmdet.onnx_export import export_onnx
from asl_mmdet.structures import MultiLabelDataSample

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = [
    ROOT / 'configs/multi_label/tresnet-m_asl_8xb16-60e_coco2014-448.py',
    ROOT / 'configs/fcos/fcos_tresnet-m_fpn_asl_8xb6-70e_coco.py',
]


def contestants(cfg: Config, batch_size: int, size: tuple[int, int], threads: int) -> dict:
    """Functions that predict one batch, by name."""
    import onnxruntime

    torch.manual_seed(0)
    model = randomise(MODELS.build(cfg.model)).eval()
    is_classifier = isinstance(model, ImageClassifier)
    head = model.head if is_classifier else model.bbox_head
    model.dataset_meta = dict(classes=[f'class {i}' for i in range(head.num_classes)])
    images = torch.rand(batch_size, 3, *size)
    sample = (MultiLabelDataSample if is_classifier else DetDataSample)(
        metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
    )

    def predicts(model):
        @torch.no_grad()
        def predict():
            return model(images, [copy.deepcopy(sample) for _ in images], mode='predict')

        return predict

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(cfg, model, Path(folder, 'model.onnx'))
        session = onnxruntime.InferenceSession(Path(folder, 'model.onnx'), options)
    inputs = dict(image=images.numpy(), image_size=torch.tensor([size] * batch_size).numpy())
    inputs = {entry.name: inputs[entry.name] for entry in session.get_inputs()}
    return {
        'PyTorch': predicts(model),
        'BN folded': predicts(fast_inference(copy.deepcopy(model))),
        'BN folded, compiled (--fast)': predicts(fast_inference(copy.deepcopy(model), compile=True)),
        'onnxruntime': lambda: session.run(None, inputs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('configs', nargs='*', metavar='CONFIG', default=CONFIGS, help='default: TResNet-M on COCO')
    parser.add_argument('--size', type=int, nargs=2, default=[448, 448], metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    init_default_scope('mmdet')
    columns = {}
    configs = {Path(path).stem: read_config(path, {}) for path in args.configs}
    for name, cfg in configs.items():
        torch.compiler.reset()
        functions = contestants(cfg, args.batch_size, tuple(args.size), args.threads)
        columns[name] = median_times(functions, args.rounds)
    size = ' x '.join(map(str, args.size))
    print(f'Batch {args.batch_size} of {size}, multiples of the speed of plain PyTorch; {args.threads} threads\n')
    rows = [[name, *(f'{times["PyTorch"] / times[name]:.2f}' for times in columns.values())] for name in functions]
    print(table(['', *columns], rows))


if __name__ == '__main__':
    main()
