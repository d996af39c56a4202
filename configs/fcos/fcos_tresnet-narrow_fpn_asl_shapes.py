# make demo trains this.
_base_ = ['fcos_tresnet-m_fpn_asl_8xb6-70e_coco.py', '../_base_/shapes.py']

model = dict(
    **_base_.shapes.model,
    bbox_head=dict(
        num_classes=6,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        strides=[8, 16, 32],
        regress_ranges=((-1, 32), (32, 64), (64, 1e8)),
    ),
)

train_dataloader = {{_base_.shapes.train_dataloader}}
val_dataloader = {{_base_.shapes.test_dataloader}}
test_dataloader = {{_base_.shapes.test_dataloader}}
val_evaluator = {{_base_.shapes.test_evaluator}}
test_evaluator = {{_base_.shapes.test_evaluator}}
optim_wrapper = {{_base_.shapes.optim_wrapper}}
param_scheduler = {{_base_.shapes.param_scheduler}}
train_cfg = {{_base_.shapes.train_cfg}}
auto_scale_lr = {{_base_.shapes.auto_scale_lr}}
default_hooks = {{_base_.shapes.default_hooks}}
randomness = {{_base_.shapes.randomness}}
