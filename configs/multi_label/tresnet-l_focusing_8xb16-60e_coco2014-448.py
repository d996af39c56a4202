# Table 2: asymmetric focusing alone.
_base_ = 'tresnet-l_asl_8xb16-60e_coco2014-448.py'

model = dict(head=dict(loss=dict(gamma_neg=3.0, clip=0.0)))
