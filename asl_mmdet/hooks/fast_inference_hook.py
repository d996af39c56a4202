"""Tests a model at the speed of deployment."""

import copy

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from ..fast_inference import fast_inference


@HOOKS.register_module()
class FastInferenceHook(Hook):
    """Tests a folded and compiled copy of the model, see :func:`~asl_mmdet.fast_inference.fast_inference`.

    The model itself stays as it is: EMAHook changes its weights back after the test.
    """

    priority = 'LOWEST'  # EMAHook has changed the weights

    def before_test_epoch(self, runner) -> None:
        self._model = runner.model
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        runner.model = fast_inference(copy.deepcopy(model), compile=True)

    def after_test_epoch(self, runner, metrics: dict | None = None) -> None:
        runner.model = self._model
