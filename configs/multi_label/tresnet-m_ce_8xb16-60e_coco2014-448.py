_base_ = 'tresnet-m_asl_8xb16-60e_coco2014-448.py'

model = dict(head=dict(loss=dict(gamma_neg=0.0, clip=0.0)))
