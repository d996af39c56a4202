_base_ = 'tresnet-l_asl_8xb16-5e_open-images-448.py'

model = dict(head=dict(loss=dict(gamma_neg=0.0, clip=0.0)))
load_from = 'work_dirs/tresnet-l_ce_8xb16-30e_open-images-224/epoch_30.pth'
