# Table 6, extra pretraining data: the backbone of a classifier trained on COCO.
_base_ = 'resnet101_asl_8xb16-60e_voc2007-448.py'

model = dict(
    backbone=dict(
        init_cfg=dict(checkpoint='work_dirs/resnet101_asl_8xb16-60e_coco2014-448/epoch_60.pth', prefix='backbone.')
    )
)
