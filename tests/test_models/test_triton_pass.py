import os

import pytest
import torch

from tests.conftest import ROOT, run_tool

SCRIPT = 'tests/test_models/triton_pass.py'


def run_script(**env):
    pytest.importorskip('triton')
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    done = run_tool(SCRIPT, env=dict(PYTHONPATH=path, **env))
    assert done.returncode == 0, done.stdout
    return done.stdout.split()[-1]


@pytest.mark.slow
def test_the_kernels_compute_the_same_in_the_interpreter_of_triton():
    assert run_script(TRITON_INTERPRET='1') == 'equal'


@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu_and_compute_the_same_where_there_is_one():
    assert run_script() == ('equal' if torch.cuda.is_available() else 'compiled')
