# Paper, appendix B: Adam with the 1-cycle policy up to 2e-4, 60 epochs. The paper does not give the rest: batch size,
# share of the cycle before its peak, weight decay and average of weights are the public script's. The decay is
# decoupled, hence AdamW: added to the gradient, it would count for more or less by what the loss is divided by.
# 1-cycle moves Adam's first beta against the learning rate, from 0.95 to 0.85 and back. Whoever changes max_epochs
# changes where it turns and ends, too; the cycle of the rate follows by itself.
optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, betas=(0.95, 0.999), weight_decay=1e-4),
    paramwise_cfg=dict(flat_decay_mult=0.0),
)
param_scheduler = [
    dict(type='ScalableOneCycleLR', pct_start=0.2, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingMomentum', eta_min=0.85, begin=0, end=12, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingMomentum', eta_min=0.95, begin=12, end=60, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=60, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=128)
