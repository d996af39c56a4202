# Paper, appendix H: the focal loss of table 13. "The enhancements discussed in ATSS and FCOS" are read as those of
# mmdet's improved FCOS: centerness beside the boxes, boxes in units of the stride, samples near centers, and the GIoU
# loss, where the appendix says IoU loss. Resolution, flips and the focal loss's alpha of 0.25 are mmdet's as well.
_base_ = [
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py',
    '../_base_/asl_mmdet.py',
    '../_base_/appendix_h.py',
]

model = {{_base_.appendix_h.model}}
train_dataloader = {{_base_.appendix_h.train_dataloader}}
train_cfg = {{_base_.appendix_h.train_cfg}}
param_scheduler = {{_base_.appendix_h.param_scheduler}}
auto_scale_lr = {{_base_.appendix_h.auto_scale_lr}}
default_hooks = {{_base_.appendix_h.default_hooks}}
visualizer = {{_base_.appendix_h.visualizer}}
