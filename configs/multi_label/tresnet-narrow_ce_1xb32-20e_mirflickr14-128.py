# Cross-entropy.
_base_ = 'tresnet-narrow_asl_1xb32-20e_mirflickr14-128.py'

model = dict(head=dict(loss=dict(gamma_neg=0.0, clip=0.0)))
