_base_ = 'tresnet-l_asl_8xb16-30e_open-images-224.py'

model = dict(head=dict(loss=dict(gamma_pos=4.0, gamma_neg=4.0, clip=0.0)))
