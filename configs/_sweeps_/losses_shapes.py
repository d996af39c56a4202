# Small enough for two CPU cores, after python tools/make_shapes.py data/shapes: cross-entropy, focal loss and ASL.
base = 'configs/multi_label/tresnet-narrow_asl_shapes.py'
metric = 'multi-label/mAP'
seeds = [0, 1, 2]
runs = {
    'cross-entropy': {'model.head.loss': dict(gamma_pos=0.0, gamma_neg=0.0, clip=0.0)},
    'focal': {'model.head.loss': dict(gamma_pos=2.0, gamma_neg=2.0, clip=0.0)},
    'ASL': {'model.head.loss': dict(gamma_pos=0.0, gamma_neg=4.0, clip=0.05)},
}
