# The official code's softmax variant with label smoothing.
_base_ = 'tresnet-l_asl_8xb16-60e_herbarium-448.py'

model = dict(head=dict(loss=dict(_delete_=True, type='ASLSingleLabel')))
