# Tables 6 and 9, extra pretraining data: the backbone of a classifier trained on COCO. The paper does not say with
# which loss; here all three of table 9 begin with that of ASL.
_base_ = 'tresnet-l_asl_8xb16-60e_voc2007-448.py'

model = dict(
    backbone=dict(
        init_cfg=dict(checkpoint='work_dirs/tresnet-l_asl_8xb16-60e_coco2014-448/epoch_60.pth', prefix='backbone.')
    )
)
