"""A trained model made faster, for inference alone."""

import torch
from mmcv.cnn import fuse_conv_bn
from torch import nn


def fast_inference(model: nn.Module, compile: bool = False) -> nn.Module:
    """Fold BN into the convolutions before it and store weights channels last, in place; features differ by rounding.

    The model is for inference from then on: its BN is gone, so checkpoints have to be loaded before.

    Args:
        model: detector, classifier or backbone.
        compile: also run the backbone through torch.compile, which fuses activations into the convolutions and packs
            the weights once, as they are at the first call under ``no_grad``: a second copy of them, in which later
            changes go unseen. The first call takes seconds to minutes, and so does the first one of another size, for
            code that serves any size, without packed weights. A C++ compiler is needed, on a GPU Triton.

    Returns:
        ``model``, in eval mode.
    """
    model.eval()
    fuse_conv_bn(model).to(memory_format=torch.channels_last)
    if compile:
        backbone = getattr(model, 'backbone', model)
        backbone.compile()
        # As an option of compile it is ignored: whether weights are constants is decided before options count.
        freezing = torch._inductor.config.patch(freezing=True)
        backbone._compiled_call_impl = freezing(backbone._compiled_call_impl)
    return model
