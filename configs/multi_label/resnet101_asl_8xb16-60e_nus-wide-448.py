# Table 10: ResNet-101.
_base_ = ['tresnet-l_asl_8xb16-60e_nus-wide-448.py', '../_base_/models/resnet101.py']

model = {{_base_.resnet101}}
