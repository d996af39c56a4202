# Taken over by name, over a recipe that has TResNet-L.
resnet101 = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=101,
        out_indices=(3,),
        norm_eval=False,
        style='pytorch',
        # https://download.pytorch.org/models/resnet101-63fe2227.pth
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/resnet101-63fe2227.pth'),
    ),
    head=dict(in_channels=2048),
)
