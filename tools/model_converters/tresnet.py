"""Rewrite the weights of a TResNet, in the official or timm's layout, as a file of our own layout.

The backbone loads all layouts as they are; this saves the remap where a file is read often or passed on. With --head,
the file is a checkpoint of a whole ImageClassifier, such as those that the authors trained: tools/test.py evaluates it.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from asl_mmdet.models.tresnet import ARCHITECTURES, TResNet, load_weights, read_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('src', type=Path, help='official .pth, or .pth, .bin or .safetensors of timm')
    parser.add_argument('dst', type=Path, help='file to write, .pth or .safetensors; must not exist yet')
    parser.add_argument('--arch', choices=list(ARCHITECTURES), help='insist on this one (default: the file tells)')
    parser.add_argument('--prefix', help="keys to take out of a whole model's checkpoint, such as 'backbone.'")
    parser.add_argument(
        '--head', action='store_true', help='a checkpoint of backbone and classifier, with the names of its classes'
    )
    args = parser.parse_args()
    if args.head and args.dst.suffix != '.pth':
        parser.error(f"dst '{args.dst}': a checkpoint with --head is written as .pth")
    if args.dst.suffix not in ('.pth', '.safetensors'):
        parser.error(f"dst '{args.dst}': a name that ends in .pth or .safetensors is expected")
    if args.dst.exists():
        parser.error(f"dst '{args.dst}' exists: remove it or choose another name")

    try:
        weights = read_weights(args.src, args.prefix)
        arch = args.arch or weights.arch
        model = TResNet(arch)
        load_weights(model, weights, args.src)
        meta, state = dict(arch=arch, source=args.src.name), model.state_dict()
        if args.head:
            state = {f'backbone.{key}': value for key, value in state.items()} | head_of(weights.left_out, args.src)
            meta |= dict(dataset_meta=dict(classes=weights.classes)) if weights.classes else {}
        args.dst.parent.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        parser.exit(1, f'{error}\n')

    if args.dst.suffix == '.safetensors':
        from safetensors.torch import save_file

        save_file(state, args.dst)
    else:
        torch.save(dict(meta=meta, state_dict=state), args.dst)
    print(f"{args.dst}: TResNet(arch={arch!r}), {len(state)} tensors from '{args.src}' ({weights.layout} layout)")
    if weights.left_out and not args.head:
        print(f'left out: {", ".join(sorted(weights.left_out))}')


def head_of(left_out: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Tensors of MultiLabelLinearClsHead, whose names are the official ones; timm's files have the same."""
    head = {key: value for key, value in left_out.items() if key.startswith('head.fc.')}
    if not head:
        raise ValueError(f"'{path}' has no classifier: none of its keys begins with head.fc.")
    return head


if __name__ == '__main__':
    main()
