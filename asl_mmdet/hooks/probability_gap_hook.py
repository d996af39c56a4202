"""Watches how confident a network is of positives and of negatives while it trains (section 2.6)."""

import math

from mmdet.registry import HOOKS
from mmengine.hooks import Hook, LoggerHook
from mmengine.model import is_model_wrapper
from torch import nn

from ..models.asymmetric_loss import AsymmetricLoss, ProbabilityStatistics, mean_probabilities


def asymmetric_losses(model: nn.Module) -> dict[str, AsymmetricLoss]:
    """Every AsymmetricLoss of a model, by its place, such as 'bbox_head.loss_cls'.

    Raises:
        ValueError: there is none.
    """
    model = model.module if is_model_wrapper(model) else model
    losses = {name: module for name, module in model.named_modules() if isinstance(module, AsymmetricLoss)}
    if not losses:
        raise ValueError(
            f'{type(model).__name__} has no AsymmetricLoss to watch. Cross-entropy is AsymmetricLoss(gamma_neg=0, '
            'clip=0) and focal loss AsymmetricLoss(gamma_pos=2, gamma_neg=2, alpha=0.25, clip=0)'
        )
    return losses


def log_scalars(runner, place: str, scalars: dict[str, float]) -> None:
    """Hands a loss's scalars to the log, as ``train/gap``, or ``train/<place>/gap`` where the model has several.

    "loss" in the place is written "asl": mmengine's log averages everything that is called a loss.
    """
    prefix = f'train/{place.replace("loss", "asl")}/' if len(asymmetric_losses(runner.model)) > 1 else 'train/'
    for name, value in scalars.items():
        runner.message_hub.update_scalar(prefix + name, value)


def is_logging_step(runner, batch_idx: int) -> bool:
    """Whether mmengine's LoggerHook writes a line after this iteration."""
    logger = next((hook for hook in runner.hooks if isinstance(hook, LoggerHook)), None)
    if logger is None:
        return False
    length = len(runner.train_dataloader)
    at_end = logger.end_of_epoch(runner.train_dataloader, batch_idx) and (
        not logger.ignore_last or length <= logger.interval
    )
    return logger.every_n_inner_iters(batch_idx, logger.interval) or at_end


@HOOKS.register_module()
class ProbabilityGapHook(Hook):
    """Logs p_t+, p_t- (eq. 9) and the gap p_t+ - p_t- (eq. 10) of every AsymmetricLoss of the model.

    The scalars ``p_t_pos``, ``p_t_neg`` and ``gap`` are means over all elements of all processes in the batches that
    are watched since the last line of the log; a model with several losses has them under the place of each, such as
    ``bbox_head.asl_cls/`` for ``bbox_head.loss_cls``. They come out of the loss's own pass. A line whose batches had no
    positive, or no negative, repeats the last ones.

    Args:
        every: watch the batch of every so many iterations, and that of each line of the log. To watch all of them, 1,
            makes the loss 5 to 20 % slower.

    Raises:
        ValueError: ``every`` is below 1; at the start of a run, when the model has no AsymmetricLoss.
    """

    def __init__(self, every: int = 10) -> None:
        if every < 1:
            raise ValueError(f'every={every} of ProbabilityGapHook must be 1 or more')
        self.every = every

    def before_train(self, runner) -> None:
        self._statistics = {}
        for place, loss in asymmetric_losses(runner.model).items():
            self._statistics[place] = ProbabilityStatistics()
            loss.observe(self._statistics[place])

    def after_train(self, runner) -> None:
        for place, loss in asymmetric_losses(runner.model).items():
            loss.stop_observing(self._statistics[place])

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        is_watched = (batch_idx + 1) % self.every == 0 or is_logging_step(runner, batch_idx)
        for statistics in self._statistics.values():
            statistics.paused = not is_watched

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        if not is_logging_step(runner, batch_idx):
            return
        for place, statistics in self._statistics.items():
            p_t_pos, p_t_neg = (mean.item() for mean in mean_probabilities(statistics.take()))
            gap = p_t_pos - p_t_neg
            if math.isfinite(gap):
                log_scalars(runner, place, dict(p_t_pos=p_t_pos, p_t_neg=p_t_neg, gap=gap))
