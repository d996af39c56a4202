_base_ = 'atss_tresnet-m_fpn_asl_8xb6-70e_coco.py'

model = dict(bbox_head=dict(loss_cls=dict(alpha=0.25)))
