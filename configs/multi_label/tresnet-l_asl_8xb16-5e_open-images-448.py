# Appendix F: 5 more epochs at 448 pixels, from the last checkpoint of the 30 at 224. It gives no schedule of their own:
# another whole cycle, up to the same rate.
_base_ = 'tresnet-l_asl_8xb16-30e_open-images-224.py'

_resize = dict(type='Resize', scale=(448, 448), keep_ratio=False)
_load, _, *_augment_and_pack = _base_.train_pipeline
train_pipeline = [_load, _resize, *_augment_and_pack]
test_pipeline = [_load, _resize, dict(type='PackMultiLabelInputs')]
model = dict(backbone=dict(init_cfg=None))
load_from = 'work_dirs/tresnet-l_asl_8xb16-30e_open-images-224/epoch_30.pth'
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
train_cfg = dict(max_epochs=5)
param_scheduler = [
    dict(type='ScalableOneCycleLR', pct_start=0.2, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingMomentum', eta_min=0.85, begin=0, end=1, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingMomentum', eta_min=0.95, begin=1, end=5, by_epoch=True, convert_to_iter_based=True),
]
