# Paper, appendix H, ATSS assignment with ASL. It gives neither margin nor alpha, and here is none: detectors
# start at 0.01, and a margin above that would leave negatives without a gradient. asl-alpha has the focal loss's alpha.
_base_ = 'atss_tresnet-m_fpn_focal_8xb6-70e_coco.py'

model = dict(
    bbox_head=dict(
        loss_cls=dict(_delete_=True, type='AsymmetricLoss', use_sigmoid=True, gamma_pos=1.0, gamma_neg=2.0, clip=0.0)
    )
)
