# Figure 6: mAP along gamma_pos, from symmetric to none, for gamma_neg 2 and 4.
base = 'configs/multi_label/tresnet-l_asl_8xb16-60e_coco2014-448.py'
metric = 'multi-label/mAP'
seeds = [0]
common = {'model.head.loss.clip': 0.0, 'custom_hooks.+ProbabilityGapHook': {}}
runs = {
    f'gamma_neg={gamma_neg},gamma_pos={share * gamma_neg}': {
        'model.head.loss': dict(gamma_neg=gamma_neg, gamma_pos=share * gamma_neg)
    }
    for gamma_neg in (2.0, 4.0)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0)
}
x = 'model.head.loss.gamma_pos'
lines = 'model.head.loss.gamma_neg'
