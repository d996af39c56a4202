import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

root = Path(__file__).parent
mim = root / 'asl_mmdet/.mim'

if not (mim / 'configs').is_dir():
    raise SystemExit(
        f'{mim}/configs is no folder: this checkout lost its symbolic links. Clone with git, or take a .tar.gz'
    )


# What tools/export_onnx.py wants.
ONNX = ['onnx', 'onnxruntime', 'onnxscript']


class BuildPyAndData(build_py):
    def run(self):
        super().run()
        if self.editable_mode:  # setuptools forgets data_files there
            self.run_command('install_data')


setup(
    name='asl_mmdet',
    version=re.search(r"'(.+)'", (root / 'asl_mmdet/version.py').read_text()).group(1),
    description='Asymmetric Loss (ICCV 2021) and TResNet for OpenMMLab detectors and multi-label classifiers',
    long_description=(root / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    keywords='asymmetric loss, multi-label classification, object detection, TResNet, mmdetection, OpenMMLab, PyTorch',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
        'Typing :: Typed',
    ],
    packages=find_packages(include=['asl_mmdet', 'asl_mmdet.*']),
    # asl_mmdet/.mim holds links to configs, tools and model-index.yml; a wheel gets what they lead to.
    package_data={
        'asl_mmdet': [
            'py.typed',
            'winograd.cpp',
            '.mim/model-index.yml',
            '.mim/configs/**/*.py',
            '.mim/configs/**/*.yml',
            '.mim/tools/**/*.py',
            '.mim/tools/**/*.sh',
        ],
        'asl_mmdet.report': ['*.html', '*.js'],
    },
    # What works on the files of a clone only.
    exclude_package_data={
        'asl_mmdet': [
            '.mim/tools/licences.py',
            '.mim/tools/lock.py',
            '.mim/tools/setup_env.py',
            '.mim/tools/analysis_tools/audit_benchmark.py',
            '.mim/tools/analysis_tools/benchmark*.py',
            '.mim/tools/analysis_tools/timm_tresnet.py',
        ]
    },
    # Into site-packages.
    data_files=[('../purelib', ['startup/asl_mmdet_scope.pth', 'startup/asl_mmdet_scope.py'])],
    cmdclass=dict(build_py=BuildPyAndData),
    python_requires='>=3.10,<3.14',
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
        'onnx': ONNX,
        'test': [
            *ONNX,
            'hypothesis',
            'pytest',
            'pytest-xdist',
            'safetensors',
            'scikit-learn',
            'selenium',
        ],
        'lint': ['mypy', 'ruff'],
    },
)
