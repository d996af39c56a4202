# Table 6: ResNet-101.
_base_ = [
    '../_base_/asl_mmdet.py',
    '../_base_/models/resnet101_asl.py',
    '../_base_/datasets/voc2007.py',
    '../_base_/pipelines/squash_448.py',
    '../_base_/schedules/asl_onecycle_60e.py',
    '../_base_/multi_label_runtime.py',
]

model = dict(head=dict(num_classes=20))

train_dataloader = dict(dataset=dict(pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))
test_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))
