# Focal loss, gamma 2.
_base_ = 'tresnet-narrow_asl_1xb32-20e_mirflickr14-128.py'

model = dict(head=dict(loss=dict(gamma_pos=2.0, gamma_neg=2.0, clip=0.0)))
