_base_ = 'tresnet-l_asl.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='OFA595',
        # The file 'init' of flops@595M_top1@80.0_finetune@75, from https://github.com/mit-han-lab/once-for-all
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/ofa595.pth'),
    ),
    head=dict(in_channels=1536),
)
