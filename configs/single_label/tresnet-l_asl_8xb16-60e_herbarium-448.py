# Table 12 and appendix G: single labels over the 32,093 species. Appendix G does not name the form of the loss, the
# margin, backbone and resolution: sigmoids, and what COCO is trained with, are our choice. tresnet-l_softmax-asl beside
# this has the loss that the authors published for single labels. The paper's figures are of a test set whose labels
# are not public; here a tenth of the training set is held out.
_base_ = [
    '../_base_/asl_mmdet.py',
    '../_base_/models/tresnet-l_asl.py',
    '../_base_/datasets/herbarium.py',
    '../_base_/pipelines/squash_448.py',
    '../_base_/schedules/asl_onecycle_60e.py',
    '../_base_/multi_label_runtime.py',
]

model = dict(head=dict(num_classes=32093, topk=1, thr=None))
default_hooks = dict(checkpoint=dict(save_best='multi-label/macro_F1', rule='greater'))
custom_hooks = [
    dict(type='RawAndEMAHook', metric='multi-label/macro_F1', momentum=0.0003),
    dict(type='DataCheckHook'),
]
train_dataloader = dict(dataset=dict(pipeline={{_base_.train_pipeline}}))
val_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))
test_dataloader = dict(dataset=dict(pipeline={{_base_.test_pipeline}}))
