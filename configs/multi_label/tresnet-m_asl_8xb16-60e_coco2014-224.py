# The smaller TResNet, which the paper has in detectors only, and which the authors publish: TResNet-M at 224 pixels.
_base_ = [
    '../_base_/asl_mmdet.py',
    '../_base_/models/tresnet-l_asl.py',
    '../_base_/datasets/coco2014.py',
    '../_base_/pipelines/squash_224.py',
    '../_base_/schedules/asl_onecycle_60e.py',
    '../_base_/multi_label_runtime.py',
]

model = dict(
    backbone=dict(arch='m', init_cfg=dict(checkpoint='checkpoints/tresnet_m.pth')), head=dict(in_channels=2048)
)

train_dataloader = dict(dataset=dict(pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))
test_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))
