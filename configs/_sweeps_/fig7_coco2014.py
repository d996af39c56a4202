# Figure 7: mAP over the probability margin, on cross-entropy and on focal loss with gamma 2 and 4.
base = 'configs/multi_label/tresnet-l_asl_8xb16-60e_coco2014-448.py'
metric = 'multi-label/mAP'
seeds = [0]
common = {'custom_hooks.+ProbabilityGapHook': {}}
runs = {
    f'gamma={gamma},clip={clip}': {'model.head.loss': dict(gamma_pos=gamma, gamma_neg=gamma, clip=clip)}
    for gamma in (0.0, 2.0, 4.0)
    for clip in (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
}
x = 'model.head.loss.clip'
lines = 'model.head.loss.gamma_neg'
# Margin alone is also in table 2, without any in figure 5.
paper = {'multi-label/mAP': {'gamma=0.0,clip=0.0': 84.0, 'gamma=2.0,clip=0.0': 85.1, 'gamma=2.0,clip=0.3': 86.3}}
