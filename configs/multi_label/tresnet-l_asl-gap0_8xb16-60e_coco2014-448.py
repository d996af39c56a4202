# Table 3, target 0. The paper gives neither step, start nor limits; this starts from cross-entropy with a margin.
_base_ = 'tresnet-l_asl_8xb16-60e_coco2014-448.py'

model = dict(head=dict(loss=dict(gamma_neg=0.0)))
custom_hooks = [
    *_base_.custom_hooks,
    dict(type='ProbabilityGapHook'),
    dict(type='AdaptiveAsymmetryHook', target=0.0, step=0.01),
]
