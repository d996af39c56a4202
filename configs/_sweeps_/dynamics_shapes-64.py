# Figures 4 and 9 and table 3 at the scale of a CPU: the gap of symmetric and asymmetric losses, and of adapted ones, on
# python tools/make_shapes.py data/shapes-64-imbalanced --size 64 --val 600 --imbalance 20
base = 'configs/multi_label/tresnet-narrow_asl_shapes-64.py'
metric = 'multi-label/mAP'
seeds = [0, 1, 2]
common = {f'{split}_dataloader.dataset.data_root': 'data/shapes-64-imbalanced/' for split in ('train', 'val', 'test')}
runs = {
    'cross-entropy': {'model.head.loss': dict(gamma_neg=0.0, clip=0.0)},
    'focal': {'model.head.loss': dict(gamma_pos=2.0, gamma_neg=2.0, clip=0.0)},
    'ASL': {'model.head.loss': dict(gamma_neg=4.0, clip=0.05)},
    'ASL of figure 4': {'model.head.loss': dict(gamma_neg=2.0, clip=0.2)},
    **{
        f'target {target}': {
            'model.head.loss': dict(gamma_neg=0.0, clip=0.05),
            'custom_hooks.+AdaptiveAsymmetryHook': dict(target=target, step=0.02),
        }
        for target in (0.0, 0.1, 0.2, 0.3)
    },
}
