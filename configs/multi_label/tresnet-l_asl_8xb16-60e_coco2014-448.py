# Tables 2, 4, 5 and 8 and figure 8: TResNet-L, ASL.
_base_ = [
    '../_base_/asl_mmdet.py',
    '../_base_/models/tresnet-l_asl.py',
    '../_base_/datasets/coco2014.py',
    '../_base_/pipelines/squash_448.py',
    '../_base_/schedules/asl_onecycle_60e.py',
    '../_base_/multi_label_runtime.py',
]

train_dataloader = dict(dataset=dict(pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))
test_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))
