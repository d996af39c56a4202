# Paper, section 4.1 and appendix B: TResNet-L with ASL, for the 80 classes of MS-COCO.
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0], bgr_to_rgb=True
    ),
    backbone=dict(
        type='TResNet',
        arch='l',
        out_indices=(3,),
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/tresnet_l.pth'),
    ),
    head=dict(
        type='MultiLabelLinearClsHead',
        num_classes=80,
        in_channels=2432,
        loss=dict(type='AsymmetricLoss', gamma_pos=0.0, gamma_neg=4.0, clip=0.05),
        # Training with ASL raises probabilities; the public script evaluates at this one.
        thr=0.8,
    ),
)
