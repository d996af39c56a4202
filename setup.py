import re
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent

setup(
    name='asl_mmdet',
    version=re.search(r"'(.+)'", (root / 'asl_mmdet/version.py').read_text()).group(1),
    description='Asymmetric Loss (ICCV 2021) and TResNet for OpenMMLab detectors and multi-label classifiers',
    long_description=(root / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['asl_mmdet', 'asl_mmdet.*']),
    python_requires='>=3.10,<3.13',
    # Neither torch nor the mm packages stand here: a second distribution of the same imports, or a torch other than the
    # one mmcv's ops were compiled for, breaks an environment that works.
    install_requires=[],
    extras_require={
        'onedl': [
            'onedl-mmengine>=0.10.12,<0.11',
            'onedl-mmcv>=2.3.6,<2.4',
            'onedl-mmdetection>=3.5.1,<3.6',
            'tensorboard',
        ],
        'openmmlab': [
            'mmengine>=0.10.7,<0.11',
            'mmcv>=2.1,<2.2',
            'mmdet>=3.3,<3.4',
            # mmengine 0.10.7 imports pkg_resources.
            'setuptools<82',
            'tensorboard',
        ],
        'test': [
            'hypothesis',
            'onnx',
            'onnxruntime',
            'onnxscript',
            'pytest',
            'safetensors',
            'scikit-learn',
            'selenium',
        ],
    },
)
