# Paper, appendix H, ATSS assignment with ASL.
_base_ = 'atss_tresnet-m_fpn_focal_8xb6-70e_coco.py'

model = dict(
    bbox_head=dict(
        loss_cls=dict(_delete_=True, type='AsymmetricLoss', use_sigmoid=True, gamma_pos=1.0, gamma_neg=2.0, clip=0.0)
    )
)
