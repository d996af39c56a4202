_base_ = 'rand_augment.py'

_resize = dict(type='Resize', scale=(448, 448), keep_ratio=False)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    _resize,
    {{_base_.cutout}},
    {{_base_.rand_augment}},
    dict(type='PackMultiLabelInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), _resize, dict(type='PackMultiLabelInputs')]
