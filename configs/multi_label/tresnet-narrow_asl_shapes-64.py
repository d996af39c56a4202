# For many runs on a CPU, those of configs/_sweeps_/*_shapes-64.py:
# python tools/make_shapes.py data/shapes-64 --size 64 --val 600
_base_ = 'tresnet-narrow_asl_shapes.py'

model = dict(backbone=dict(arch=dict(layers=(1, 1, 1, 1))))
train_dataloader = dict(batch_size=16, num_workers=1, dataset=dict(data_root='data/shapes-64/'))
val_dataloader = dict(batch_size=64, num_workers=1, dataset=dict(data_root='data/shapes-64/'))
test_dataloader = dict(batch_size=64, num_workers=1, dataset=dict(data_root='data/shapes-64/'))
optim_wrapper = dict(optimizer=dict(lr=5e-3))
train_cfg = dict(max_epochs=15, val_interval=5)
default_hooks = dict(checkpoint=dict(interval=5), visualization=dict(draw=False))
