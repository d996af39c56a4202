# Figure 4: mean probabilities of positives and negatives along the training. The paper's gaps are those at its end.
base = 'configs/multi_label/tresnet-l_asl_8xb16-60e_coco2014-448.py'
metric = 'multi-label/mAP'
seeds = [0]
common = {'custom_hooks.+ProbabilityGapHook': {}}
runs = {
    'cross-entropy': {'model.head.loss': dict(gamma_pos=0.0, gamma_neg=0.0, clip=0.0)},
    'focal': {'model.head.loss': dict(gamma_pos=2.0, gamma_neg=2.0, clip=0.0)},
    'ASL': {'model.head.loss': dict(gamma_pos=0.0, gamma_neg=2.0, clip=0.2)},
}
paper = {'gap': {'cross-entropy': -0.23, 'focal': -0.1}}
