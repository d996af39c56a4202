"""What import asl_mmdet says on stacks that cannot work, each faked by packages in front of the real ones."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    'package, content, message',
    [
        ('mmdet', "__version__ = '2.28.0'", 'needs mmdet 3.3.0 or later, and 2.28.0 is installed'),
        ('torch', "__version__ = '1.13.1+cu117'", 'needs torch 2.4 or later, and 1.13.1+cu117 is installed'),
        (
            'mmengine',
            "raise ModuleNotFoundError('mmengine')",
            'needs mmengine 0.10.7 or later, and it is not installed',
        ),
        ('mmcv', "__version__ = '2.3.6'", 'mmcv is installed without its compiled ops'),
        ('cv2', "raise ImportError('libGL.so.1: cannot open shared object file')", 'apt-get install libgl1'),
    ],
)
def test_import_is_refused_in_one_line(package, content, message, tmp_path):
    (tmp_path / package).mkdir()
    (tmp_path / package / '__init__.py').write_text(content)
    for other in {'torch', 'mmengine', 'mmcv', 'mmdet', 'cv2'} - {package}:
        (tmp_path / other).mkdir()
        (tmp_path / other / '__init__.py').write_text("__version__ = '99.0'")
    code = f'import sys; sys.path.insert(0, {str(tmp_path)!r}); import asl_mmdet'
    done = subprocess.run([sys.executable, '-c', code], text=True, capture_output=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith('ImportError: asl_mmdet') and message in last
    assert 'make install' in last or 'opencv' in last
