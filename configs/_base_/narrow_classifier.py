# What the classifiers for a CPU share: a narrow TResNet from scratch, AdamW, 1-cycle.
_base_ = ['asl_mmdet.py', 'models/tresnet-l_asl.py', 'datasets/multi_label_loaders.py', 'multi_label_runtime.py']

model = dict(
    backbone=dict(arch=dict(_delete_=True, layers=(1, 1, 2, 1), width=0.25), init_cfg=None),
    head=dict(in_channels=512, thr=0.5),
)
train_dataloader = dict(num_workers=2)
val_dataloader = dict(num_workers=2)
test_dataloader = dict(num_workers=2)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-3, weight_decay=0.05),
    paramwise_cfg=dict(flat_decay_mult=0.0),
)
param_scheduler = [dict(type='ScalableOneCycleLR', pct_start=0.2, by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(type='EpochBasedTrainLoop')
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
