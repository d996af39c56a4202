# What the authors' public training script does: half the paper's peak, and a cycle of 80 epochs that stops
# at 40 (it breaks off where epoch > 40, counted from 0, which lets a 41st pass).
_base_ = 'asl_onecycle_60e.py'

# The script adds its weight decay of 1e-4 to the gradient of a sum over 128 images; our loss is their mean.
optim_wrapper = dict(optimizer=dict(_delete_=True, type='Adam', lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-4 / 128))
param_scheduler = [
    dict(type='ScalableOneCycleLR', total_steps=80, pct_start=0.2, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingMomentum', eta_min=0.85, begin=0, end=16, by_epoch=True, convert_to_iter_based=True),
    dict(type='CosineAnnealingMomentum', eta_min=0.95, begin=16, end=80, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=40)
