_base_ = 'tresnet-v2-l_asl_8xb16-60e_coco2014-640.py'

model = dict(head=dict(loss=dict(gamma_pos=2.0, gamma_neg=2.0, clip=0.0)))
