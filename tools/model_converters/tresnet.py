"""Rewrite the weights of a TResNet, in the official or timm's layout, as a file of our own layout.

The backbone loads all layouts as they are; this saves the remap where a file is read often or passed on.
"""

import argparse
from pathlib import Path

import torch

from asl_mmdet.models.tresnet import ARCHITECTURES, TResNet, load_weights, read_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('src', type=Path, help='official .pth, or .pth, .bin or .safetensors of timm')
    parser.add_argument('dst', type=Path, help='file to write, .pth or .safetensors; must not exist yet')
    parser.add_argument('--arch', choices=list(ARCHITECTURES), help='insist on this one (default: the file tells)')
    parser.add_argument('--prefix', help="keys to take out of a whole model's checkpoint, such as 'backbone.'")
    args = parser.parse_args()
    if args.dst.suffix not in ('.pth', '.safetensors'):
        parser.error(f"dst '{args.dst}': a name that ends in .pth or .safetensors is expected")
    if args.dst.exists():
        parser.error(f"dst '{args.dst}' exists: remove it or choose another name")

    try:
        weights = read_weights(args.src, args.prefix)
        arch = args.arch or weights.arch
        model = TResNet(arch)
        load_weights(model, weights, args.src)
    except (FileNotFoundError, ValueError) as error:
        parser.exit(1, f'{error}\n')

    state = model.state_dict()
    if args.dst.suffix == '.safetensors':
        from safetensors.torch import save_file

        save_file(state, args.dst)
    else:
        torch.save(dict(meta=dict(arch=arch, source=args.src.name), state_dict=state), args.dst)
    print(f"{args.dst}: TResNet(arch={arch!r}), {len(state)} tensors from '{args.src}' ({weights.layout} layout)")
    if weights.left_out:
        print(f'left out: {", ".join(sorted(weights.left_out))}')


if __name__ == '__main__':
    main()
