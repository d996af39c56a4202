"""A trained model made faster, for inference alone."""

import copy
import warnings

import torch
from mmcv.cnn import ConvAWS2d, ConvWS2d, fuse_conv_bn
from mmengine.utils import digit_version
from torch import nn


def fast_inference(model: nn.Module, compile: bool = False) -> nn.Module:
    """Fold BN into the convolutions before it and store weights channels last, in place; features differ by rounding.

    The model is for inference from then on: its BN is gone, so checkpoints have to be loaded before. Models with an
    operation of ``mmcv.ops``, such as deformable convolutions, keep their memory format, which these presume, and their
    convolutions.

    Args:
        model: detector, classifier or backbone.
        compile: also run the backbone through torch.compile, which fuses activations into the convolutions and packs
            the weights once, as they are at the first call under ``no_grad``: a second copy of them, in which later
            changes go unseen. The first call takes seconds to minutes, and so does the first one of another size, for
            code that serves any size, without packed weights. On a CPU, 3 x 3 convolutions of 64 channels and more, of
            the heads too, go by Winograd's algorithm, with weights of their own, in which changes go unseen as well and
            which take four times as much memory again. A C++ compiler is needed, on a GPU Triton.

    Returns:
        ``model``, in eval mode.

    Raises:
        ValueError: a convolution standardises its weights, so that nothing can be folded into them.
    """
    for name, module in model.named_modules():
        if isinstance(module, (ConvWS2d, ConvAWS2d)):
            raise ValueError(
                f'fast_inference: {name} is a {type(module).__name__}, which standardises its weights at every call, '
                'so that BN cannot be folded into them. Run the model as it is'
            )
    model.eval()
    _separate_shared_convolutions(model)
    folded = fuse_conv_bn(model)
    channels_last = not any(type(module).__module__.startswith('mmcv.ops') for module in model.modules())
    if channels_last:
        folded.to(memory_format=torch.channels_last)
    if compile:
        # As options of compile they are ignored: whether weights are constants is decided before options count.
        settings = dict(freezing=True)
        on_gpu = any(parameter.is_cuda for parameter in model.parameters())
        # Not tried with earlier versions.
        if not on_gpu and digit_version(torch.__version__) >= digit_version('2.13'):
            if channels_last:
                _save_multiplications(model)
            # What calls the kernels is C++ too, which saves 5 to 10 % of the time at 448 pixels.
            settings['cpp_wrapper'] = True
        backbone = getattr(model, 'backbone', model)
        backbone.compile()
        backbone._compiled_call_impl = torch._inductor.config.patch(settings)(backbone._compiled_call_impl)
    return model


def _separate_shared_convolutions(model: nn.Module) -> None:
    """Heads such as RTMDet's have one convolution for all levels, each with a BN of its own to be folded into it."""
    seen = set()
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if isinstance(child, nn.Conv2d) and child in seen:
                module._modules[name] = copy.deepcopy(child)
            seen.add(child)


def _save_multiplications(model: nn.Module) -> None:
    """Replaces the convolutions that Winograd's algorithm suits."""
    from .winograd import WinogradConv2d, compiled_transforms, fits

    places = [(module, name) for module in model.modules() for name, child in module.named_children() if fits(child)]
    if not places:
        return
    try:
        compiled_transforms()
    except Exception as error:  # whatever keeps C++ from being compiled here
        warnings.warn(
            "fast_inference: convolutions do without Winograd's algorithm, which makes them faster, since its C++ does "
            f'not compile here ({type(error).__name__}: {str(error).strip().partition(chr(10))[0]})'
        )
        return
    for module, name in places:
        setattr(module, name, WinogradConv2d(getattr(module, name)))
