# The public training script's loss and schedule.
_base_ = [
    '../_base_/asl_mmdet.py',
    '../_base_/models/tresnet-l_asl.py',
    '../_base_/datasets/coco2014.py',
    '../_base_/pipelines/squash_448.py',
    '../_base_/schedules/asl_public_script_40e.py',
    '../_base_/multi_label_runtime.py',
]

model = dict(head=dict(loss=dict(detach_focusing=True)))

train_dataloader = dict(dataset=dict(pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))
test_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))
