from .adaptive_asymmetry_hook import AdaptiveAsymmetryHook
from .data_check_hook import DataCheckHook, check_no_overlap, check_num_classes
from .exact_resume_hook import ExactResumeHook
from .fast_inference_hook import FastInferenceHook
from .multi_label_visualization_hook import MultiLabelVisualizationHook
from .non_finite_hook import NonFiniteError, NonFiniteHook
from .probability_gap_hook import ProbabilityGapHook
from .raw_and_ema_hook import RawAndEMAHook
from .safe_checkpoint_hook import SafeCheckpointHook

__all__ = [
    'AdaptiveAsymmetryHook',
    'DataCheckHook',
    'ExactResumeHook',
    'FastInferenceHook',
    'MultiLabelVisualizationHook',
    'NonFiniteError',
    'NonFiniteHook',
    'ProbabilityGapHook',
    'RawAndEMAHook',
    'SafeCheckpointHook',
    'check_no_overlap',
    'check_num_classes',
]
