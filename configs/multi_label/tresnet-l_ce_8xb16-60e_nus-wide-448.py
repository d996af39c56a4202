_base_ = 'tresnet-l_asl_8xb16-60e_nus-wide-448.py'

model = dict(head=dict(loss=dict(gamma_neg=0.0, clip=0.0)))
