# Figure 5: mAP over the gamma of focal loss; 0 is cross-entropy. The paper's text has the mAP at 0, and the best at
# 2 to 4.
base = 'configs/multi_label/tresnet-l_asl_8xb16-60e_coco2014-448.py'
metric = 'multi-label/mAP'
seeds = [0]
common = {'model.head.loss.clip': 0.0, 'custom_hooks.+ProbabilityGapHook': {}}
runs = {
    f'gamma={gamma}': {'model.head.loss': dict(gamma_pos=gamma, gamma_neg=gamma)}
    for gamma in (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
}
x = 'model.head.loss.gamma_neg'
paper = {'multi-label/mAP': {'gamma=0.0': 84.0, 'gamma=2.0': 85.1}}
