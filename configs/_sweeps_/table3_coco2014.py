# Table 3: gamma_neg follows the probability gap (eq. 11), for four targets.
base = 'configs/multi_label/tresnet-l_asl_8xb16-60e_coco2014-448.py'
metric = 'multi-label/mAP'
seeds = [0]
common = {
    'model.head.loss': dict(gamma_pos=0.0, gamma_neg=0.0, clip=0.05),
    'custom_hooks.+ProbabilityGapHook': {},
    'custom_hooks.+AdaptiveAsymmetryHook.step': 0.01,
}
grid = {'custom_hooks.+AdaptiveAsymmetryHook.target': [0.0, 0.1, 0.2, 0.3]}
x = 'custom_hooks.+AdaptiveAsymmetryHook.target'
paper = {
    'multi-label/mAP': {'target=0.0': 85.8, 'target=0.1': 86.1, 'target=0.2': 86.4, 'target=0.3': 86.3},
    'gamma_neg': {'target=0.0': 1.2, 'target=0.1': 3.3, 'target=0.2': 5.2, 'target=0.3': 6.2},
}
