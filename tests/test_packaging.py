"""What a wheel brings, what an installed wheel does from any folder, and that what is said of it agrees."""

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

import asl_mmdet
from tests.conftest import ROOT

# What works on the files of a clone only, and stays there.
OF_A_CLONE = re.compile(
    r'tools/((licences|lock|setup_env)\.py|analysis_tools/(audit_benchmark|benchmark\w*|timm_tresnet)\.py)'
)
# What the paper prints, by config; tables 2 to 13, and section 3 for cross-entropy.
PAPER = {
    'fcos/fcos_tresnet-m_fpn_focal_8xb6-70e_coco': {'box AP': 44.0},
    'fcos/fcos_tresnet-m_fpn_asl_8xb6-70e_coco': {'box AP': 44.4},
    'multi_label/tresnet-l_asl_8xb16-60e_coco2014-448': {'mAP': 86.6, 'CF1': 81.4, 'OF1': 81.8},
    'multi_label/resnet101_asl_8xb16-60e_coco2014-448': {'mAP': 85.0, 'CF1': 80.3, 'OF1': 82.3},
    'multi_label/tresnet-l_ce_8xb16-60e_coco2014-448': {'mAP': 84.0},
    'multi_label/tresnet-l_focal_8xb16-60e_coco2014-448': {'mAP': 85.1},
    'multi_label/tresnet-l_focusing_8xb16-60e_coco2014-448': {'mAP': 86.3},
    'multi_label/tresnet-l_margin_8xb16-60e_coco2014-448': {'mAP': 86.3},
    'multi_label/tresnet-l_asl-gap0_8xb16-60e_coco2014-448': {'mAP': 85.8},
    'multi_label/tresnet-l_asl-gap0.1_8xb16-60e_coco2014-448': {'mAP': 86.1},
    'multi_label/tresnet-l_asl-gap0.2_8xb16-60e_coco2014-448': {'mAP': 86.4},
    'multi_label/tresnet-l_asl-gap0.3_8xb16-60e_coco2014-448': {'mAP': 86.3},
    'multi_label/tresnet-v2-l_asl_8xb16-60e_coco2014-448': {'mAP': 88.4},
    'multi_label/tresnet-v2-l_asl_8xb16-60e_coco2014-640': {'mAP': 89.8},
    'multi_label/tresnet-l_ce_8xb16-60e_voc2007-448': {'mAP': 93.2},
    'multi_label/tresnet-l_focal_8xb16-60e_voc2007-448': {'mAP': 93.8},
    'multi_label/tresnet-l_asl_8xb16-60e_voc2007-448': {'mAP': 94.6},
    'multi_label/tresnet-l_ce_8xb16-60e_voc2007-448-from-coco': {'mAP': 95.0},
    'multi_label/tresnet-l_focal_8xb16-60e_voc2007-448-from-coco': {'mAP': 95.4},
    'multi_label/tresnet-l_asl_8xb16-60e_voc2007-448-from-coco': {'mAP': 95.8},
    'multi_label/resnet101_asl_8xb16-60e_voc2007-448': {'mAP': 94.4},
    'multi_label/resnet101_asl_8xb16-60e_voc2007-448-from-coco': {'mAP': 95.3},
    'multi_label/resnet101_asl_8xb16-60e_nus-wide-448': {'mAP': 63.9, 'CF1': 62.7, 'OF1': 74.6},
    'multi_label/tresnet-l_ce_8xb16-60e_nus-wide-448': {'mAP': 63.1, 'CF1': 61.7, 'OF1': 74.6},
    'multi_label/tresnet-l_focal_8xb16-60e_nus-wide-448': {'mAP': 64.0, 'CF1': 62.9, 'OF1': 74.7},
    'multi_label/tresnet-l_asl_8xb16-60e_nus-wide-448': {'mAP': 65.2, 'CF1': 63.6, 'OF1': 75.0},
    'multi_label/tresnet-l_ce_8xb16-5e_open-images-448': {'micro mAP': 84.8, 'macro mAP': 92.0},
    'multi_label/tresnet-l_focal_8xb16-5e_open-images-448': {'micro mAP': 84.9, 'macro mAP': 92.2},
    'multi_label/tresnet-l_asl_8xb16-5e_open-images-448': {'micro mAP': 86.3, 'macro mAP': 92.8},
    'single_label/tresnet-l_focal_8xb16-60e_herbarium-448': {'macro F1': 76.1},
    'single_label/tresnet-l_asl_8xb16-60e_herbarium-448': {'macro F1': 77.6},
}


def without_repository(**more) -> dict:
    """The environment of a process that finds no package by the path of this checkout."""
    return {**{key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}, **more}


def run(*command, cwd, env=None) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=env or without_repository(), text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def build_wheel(source: Path, folder: Path) -> Path:
    run(
        *(sys.executable, '-m', 'pip', 'wheel', source, '--wheel-dir', folder, '--disable-pip-version-check'),
        *('--no-deps', '--no-build-isolation', '--no-index'),
        cwd=folder,
    )
    (wheel,) = folder.glob('asl_mmdet-*.whl')
    return wheel


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()}


@pytest.fixture(scope='session')
def clone(tmp_path_factory):
    """What git has of this checkout: all but what .gitignore names."""
    folder = tmp_path_factory.mktemp('clone') / 'asl_mmdet'
    ignored = [line.rstrip('/') for line in (ROOT / '.gitignore').read_text().split()]
    shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns('.git', *ignored))
    return folder


@pytest.fixture(scope='session')
def wheel(clone, tmp_path_factory):
    before = files(clone)
    built = build_wheel(clone, tmp_path_factory.mktemp('wheel'))
    left = {name for name in files(clone) - before if not re.match(r'build/|asl_mmdet\.egg-info/', name)}
    assert left == set()
    return built


def test_the_wheel_brings_package_configs_and_tools(wheel, clone):
    with zipfile.ZipFile(wheel) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        for name in infos:
            source = re.sub(r'^asl_mmdet/\.mim/|^asl_mmdet-[\d.]+\.data/purelib/', '', name)
            if source != name or name.startswith('asl_mmdet/'):
                source = source if 'purelib' not in name else f'startup/{source}'
                assert archive.read(name) == (clone / source).read_bytes()
        metadata = Parser().parsestr(archive.read(f'asl_mmdet-{asl_mmdet.__version__}.dist-info/METADATA').decode())
    package = {name for name in files(clone / 'asl_mmdet') if not name.startswith('.mim/')}
    configs = {f'.mim/configs/{name}' for name in files(clone / 'configs')}
    tools = {f'.mim/tools/{name}' for name in files(clone / 'tools') if not OF_A_CLONE.fullmatch(f'tools/{name}')}
    expected = {f'asl_mmdet/{name}' for name in package | configs | tools | {'.mim/model-index.yml'}}
    assert {name for name in infos if name.startswith('asl_mmdet/')} == expected
    assert {
        'asl_mmdet/py.typed',
        'asl_mmdet/.mim/tools/train.py',
        'asl_mmdet/.mim/configs/fcos/metafile.yml',
    } < expected
    for name, info in infos.items():
        if name.endswith('.sh'):
            assert info.external_attr >> 16 & 0o111, f'{name} cannot be executed'
    assert metadata['Name'] == 'asl_mmdet' and metadata['Version'] == asl_mmdet.__version__
    assert metadata['License'] == 'Apache-2.0' and metadata['License-File'] == 'LICENSE'
    assert set(metadata.get_all('Provides-Extra')) == {'onedl', 'openmmlab', 'onnx', 'test', 'lint'}
    # A torch or an mm package that pip brings in replaces the one that mmcv's ops were compiled for.
    assert all('extra ==' in requirement for requirement in metadata.get_all('Requires-Dist'))


def test_tools_of_the_wheel_find_the_modules_beside_them(wheel, clone):
    with zipfile.ZipFile(wheel) as archive:
        tools = {Path(name) for name in archive.namelist() if '/tools/' in name and name.endswith('.py')}
        local = {path.stem for path in (clone / 'tools').rglob('*.py')}
        for tool in tools:
            for node in ast.walk(ast.parse(archive.read(str(tool)))):
                if isinstance(node, ast.ImportFrom) and node.module in local:
                    assert tool.with_name(f'{node.module}.py') in tools, (tool, node.module)


def test_a_checkout_without_symbolic_links_is_refused(clone, tmp_path):
    shutil.copytree(clone, tmp_path / 'clone', symlinks=True, ignore=shutil.ignore_patterns('tests', 'docs'))
    link = tmp_path / 'clone/asl_mmdet/.mim/configs'
    target = os.readlink(link)
    link.unlink()
    link.write_text(target)  # what git leaves on a file system without links, and a .zip
    done = subprocess.run(
        [sys.executable, 'setup.py', '--version'], cwd=tmp_path / 'clone', capture_output=True, text=True
    )
    assert done.returncode != 0 and done.stderr.strip().endswith('Clone with git, or take a .tar.gz'), done.stderr


def test_one_version():
    (version,) = re.findall(r"^__version__ = '(.+)'$", (ROOT / 'asl_mmdet/version.py').read_text(), re.MULTILINE)
    assert asl_mmdet.__version__ == version
    assert yaml.safe_load((ROOT / 'CITATION.cff').read_text())['version'] == version
    assert re.search(r'^## (\S+)', (ROOT / 'CHANGELOG.md').read_text(), re.MULTILINE)[1] == version
    run_setup = subprocess.run([sys.executable, 'setup.py', '--version'], cwd=ROOT, capture_output=True, text=True)
    assert run_setup.stdout.split()[-1] == version, run_setup.stderr


def test_citation_names_the_paper():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['cff-version'] == '1.2.0' and citation['license'] == 'Apache-2.0'
    assert citation.keys() >= {'message', 'title', 'authors'}
    paper = citation['preferred-citation']
    assert paper['title'] == 'Asymmetric Loss For Multi-Label Classification' and paper['year'] == 2021
    assert len(paper['authors']) == 7 and paper['doi'] == '10.1109/ICCV48922.2021.00015'


# ----------------------------------------------------------------------------------------------------------- metafiles


def metafiles() -> dict[str, dict]:
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    return {path: yaml.safe_load((ROOT / path).read_text()) for path in index['Import']}


def test_every_recipe_is_listed_once_and_every_listed_one_exists():
    assert list(metafiles()) == sorted(str(path.relative_to(ROOT)) for path in ROOT.glob('configs/*/metafile.yml'))
    listed = []
    for path, content in metafiles().items():
        collections = {collection['Name'] for collection in content['Collections']}
        used = {model['In Collection'] for model in content['Models']}
        assert used == collections
        for model in content['Models']:
            assert model['Config'] == f'{Path(path).parent}/{model["Name"]}.py'
            listed.append(model['Config'])
    assert len(listed) == len(set(listed))
    families = [Path(path).parent for path in metafiles()]
    recipes = {str(path.relative_to(ROOT)) for family in families for path in (ROOT / family).glob('*.py')}
    # The narrow ones, for a CPU, are there to see that something learns, not to be compared.
    assert set(listed) == {recipe for recipe in recipes if 'tresnet-narrow' not in recipe}


def test_listed_schedules_are_those_of_the_names():
    for content in metafiles().values():
        for model in content['Models']:
            gpus, batch, epochs = map(int, re.search(r'_(\d+)xb(\d+)-(\d+)e_', model['Name']).groups())
            assert model['Metadata'] == {'Epochs': epochs, 'Batch Size': gpus * batch}


@pytest.mark.slow
def test_listed_recipes_are_trained_by_their_schedule():
    for content in metafiles().values():
        for model in content['Models']:
            cfg = Config.fromfile(ROOT / model['Config'])
            assert cfg.train_cfg.max_epochs == model['Metadata']['Epochs'], model['Name']
            assert cfg.auto_scale_lr.base_batch_size == model['Metadata']['Batch Size'], model['Name']


def test_metafiles_give_the_papers_figures_as_the_papers():
    found = {}
    for content in metafiles().values():
        for model in content['Models']:
            for result in model.get('Results', []):
                assert result['Source'].startswith('paper, '), model['Name']
                assert all(name.endswith(' (paper)') for name in result['Metrics']), model['Name']
                name = model['Config'].removeprefix('configs/').removesuffix('.py')
                found[name] = {key.removesuffix(' (paper)'): value for key, value in result['Metrics'].items()}
    assert found == PAPER


def test_metafiles_are_read_by_model_index(capsys):
    modelindex = pytest.importorskip('modelindex', reason='pip install --no-deps model-index ordered-set markdown')
    index = modelindex.load(str(ROOT / 'model-index.yml'))
    assert index.check(silent=True) == []
    assert len(index.models) == sum(len(content['Models']) for content in metafiles().values())


# ----------------------------------------------------------------------------------------------- configs by asl_mmdet::

NARROW = 'fcos/fcos_tresnet-narrow_fpn_asl_shapes.py'


def without_scopes(value):
    if isinstance(value, dict):
        return {key: without_scopes(item) for key, item in value.items() if key != '_scope_'}
    return [without_scopes(item) for item in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize(
    'name, scope', [(NARROW, 'mmdet'), ('multi_label/tresnet-l_asl-gap0.1_8xb16-60e_coco2014-448.py', 'asl_mmdet')]
)
def test_a_config_by_name_is_the_config_by_path(name, scope, tmp_path):
    (tmp_path / 'mine.py').write_text(f"_base_ = 'asl_mmdet::{name}'\n")
    mine, ours = Config.fromfile(tmp_path / 'mine.py'), Config.fromfile(ROOT / 'configs' / name)
    assert without_scopes(mine.to_dict()) == without_scopes(ours.to_dict())
    assert mine.model._scope_ == scope  # of the file that says what the model is


READ = """
import sys
import asl_mmdet_scope
from mmengine.config import Config
assert not any(isinstance(finder, type) and finder.__name__ == 'ScopeFinder' for finder in sys.meta_path)
assert 'asl_mmdet' not in sys.modules
cfg = Config.fromfile('mine.py')
from mmengine.registry import init_default_scope
from mmdet.registry import DATASETS, MODELS, PARAM_SCHEDULERS
init_default_scope(cfg.default_scope)
model = MODELS.build(cfg.model)
print(type(model).__module__, type(model.backbone).__module__, type(model.bbox_head.loss_cls).__module__)
"""


def test_a_process_that_never_heard_of_the_plugin_reads_and_builds(tmp_path):
    (tmp_path / 'mine.py').write_text(f"_base_ = 'asl_mmdet::{NARROW}'\n")
    env = without_repository(PYTHONPATH=os.pathsep.join([str(ROOT / 'startup'), str(ROOT)]))
    said = run(sys.executable, '-c', READ, cwd=tmp_path, env=env)
    assert 'mmdet.models.detectors.fcos asl_mmdet.models.tresnet asl_mmdet.models.asymmetric_loss' in said
    # mmengine says so where it has to make do with another scope.
    assert 'Failed to search registry' not in said and 'is not installed' not in said


def test_the_start_of_python_imports_nothing(tmp_path):
    """The .pth file is read by every process of the environment, whatever it runs."""
    script = 'import sys; before = set(sys.modules); import asl_mmdet_scope; print(sorted(set(sys.modules) - before))'
    env = without_repository(PYTHONPATH=str(ROOT / 'startup'))
    # -S: an installed plugin has done so before the script begins.
    assert run(sys.executable, '-S', '-c', script, cwd=tmp_path, env=env).strip() == "['asl_mmdet_scope']"
    assert (ROOT / 'startup/asl_mmdet_scope.pth').read_text() == 'import asl_mmdet_scope\n'


# --------------------------------------------------------------------------------------------------- an installed wheel


@pytest.fixture(scope='session')
def installed(wheel, tmp_path_factory):
    """python and site-packages of an environment that has the wheel, and what else is installed here by its path."""
    return install_into(tmp_path_factory.mktemp('environment'), wheel)


def install_into(folder: Path, *what) -> tuple[Path, Path]:
    run(sys.executable, '-m', 'venv', '--without-pip', folder, cwd=folder)
    python = folder / 'bin/python'
    site = folder / f'lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages'
    # A .pth file that is found by the path of another is not read: no editable install comes with it.
    (site / 'shared.pth').write_text(sysconfig.get_paths()['purelib'])
    run(
        *(sys.executable, '-m', 'pip', '--python', python, 'install', '--disable-pip-version-check'),
        *('--no-deps', '--no-index', '--no-build-isolation', *what),
        cwd=folder,
    )
    return python, site


def write_user_config(folder: Path) -> Path:
    """A config as a user writes it, of one epoch on a few shapes, whose data lie in the folder it is run from."""
    path = folder / 'mine.py'
    path.write_text(
        f"_base_ = 'asl_mmdet::{NARROW}'\n"
        'train_cfg = dict(max_epochs=1, val_interval=1)\n'
        "param_scheduler = [dict(type='ConstantLR', factor=1.0)]\n"
        'train_dataloader = dict(num_workers=0, persistent_workers=False)\n'
        'val_dataloader = dict(num_workers=0, persistent_workers=False)\n'
    )
    return path


def draw_shapes(python: Path, site: Path, folder: Path) -> None:
    tool = site / 'asl_mmdet/.mim/tools/make_shapes.py'
    run(python, tool, 'data/shapes', '--train', 16, '--val', 6, '--size', 64, cwd=folder)


@pytest.mark.slow
def test_the_installed_wheel_trains_from_any_folder_with_mmdets_own_tool(installed, tmp_path):
    python, site = installed
    where = run(python, '-c', 'import asl_mmdet; print(asl_mmdet.__file__)', cwd=tmp_path)
    assert str(site / 'asl_mmdet') in where
    draw_shapes(python, site, tmp_path)
    config = write_user_config(tmp_path)
    mmdet = Path(
        run(python, '-c', 'import mmdet; print("at", mmdet.__path__[0])', cwd=tmp_path).split('at ')[-1].strip()
    )
    said = run(python, mmdet / '.mim/tools/train.py', config, cwd=tmp_path)
    assert 'coco/bbox_mAP' in said and (tmp_path / 'work_dirs/mine/epoch_1.pth').is_file()
    assert 'Failed to search registry' not in said


@pytest.mark.slow
def test_the_installed_tools_work_from_any_folder(installed, tmp_path):
    python, site = installed
    tools = site / 'asl_mmdet/.mim/tools'
    draw_shapes(python, site, tmp_path)
    config = write_user_config(tmp_path)
    run(python, tools / 'train.py', config, '--work-dir', 'ours', cwd=tmp_path)
    said = run(python, tools / 'test.py', config, 'ours/epoch_1.pth', '--work-dir', 'tested', cwd=tmp_path)
    assert 'coco/bbox_mAP' in said
    # Two processes by the shell script beside it.
    env = without_repository(PYTHON=str(python), PORT='29617')
    run(tools / 'dist_train.sh', config, 2, '--work-dir', 'both', cwd=tmp_path, env=env)
    assert (tmp_path / 'both/epoch_1.pth').is_file()
    # A grid finds its base config and tools/train.py beside it.
    grid = site / 'asl_mmdet/.mim/configs/_sweeps_/dynamics_shapes-64.py'
    said = run(python, tools / 'analysis_tools/sweep.py', grid, '--dry-run', cwd=tmp_path)
    assert 'seed 0: to run' in said
    (tmp_path / 'grid.py').write_text(
        "base = 'configs/multi_label/tresnet-narrow_asl_shapes.py'\nmetric = 'multi-label/mAP'\n"
        "common = {'train_cfg.max_epochs': 1, 'param_scheduler': [dict(type='ConstantLR', factor=1.0)],\n"
        "    'train_dataloader.num_workers': 0, 'val_dataloader.num_workers': 0,\n"
        "    'train_dataloader.persistent_workers': False, 'val_dataloader.persistent_workers': False}\n"
        "runs = {'asl': {'model.head.loss.gamma_neg': 4.0}}\n"
    )
    run(python, tools / 'analysis_tools/sweep.py', 'grid.py', cwd=tmp_path)
    assert (tmp_path / 'work_dirs/grid/results.md').is_file()
    assert {path.name for path in (site / 'asl_mmdet/.mim').iterdir()} == {'configs', 'tools', 'model-index.yml'}


@pytest.mark.slow
def test_mim_trains_a_config_from_any_folder(installed, tmp_path):
    pytest.importorskip('mim', reason='openmim or onedl-mim, with --no-deps')
    python, site = installed
    draw_shapes(python, site, tmp_path)
    config = write_user_config(tmp_path)
    onedl = 'onedl-mmdetection' in run(sys.executable, '-m', 'pip', 'list', cwd=tmp_path)
    said = run(python, '-m', 'mim', 'train', 'onedl-mmdetection' if onedl else 'mmdet', config, cwd=tmp_path)
    assert 'Training finished successfully' in said and (tmp_path / 'work_dirs/mine/epoch_1.pth').is_file()
    if not onedl:
        arguments = ('--work-dir', 'by_name', '--cfg-options', 'train_cfg.max_epochs=1')
        run(python, '-m', 'mim', 'train', 'asl_mmdet', Path(NARROW).name, *arguments, cwd=tmp_path)
        assert (tmp_path / 'by_name/epoch_1.pth').is_file()
        said = run(python, '-m', 'mim', 'search', 'asl_mmdet', '--model', 'FCOS with ASL', cwd=tmp_path)
        assert '44.4' in said and '(paper)' in said


@pytest.mark.slow
def test_an_editable_install_reads_configs_by_name(clone, tmp_path):
    folder = tmp_path / 'environment'
    folder.mkdir()
    python, site = install_into(folder, '--editable', clone)
    assert not (site / 'asl_mmdet').exists()
    (tmp_path / 'mine.py').write_text(f"_base_ = 'asl_mmdet::{NARROW}'\n")
    script = (
        "from mmengine.config import Config; print('loss', Config.fromfile('mine.py').model.bbox_head.loss_cls.type)"
    )
    assert 'loss AsymmetricLoss' in run(python, '-c', script, cwd=tmp_path)


@pytest.mark.slow
def test_a_source_distribution_gives_the_same_wheel(clone, wheel, tmp_path):
    run(
        *(sys.executable, '-c', 'import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])'),
        tmp_path,
        cwd=clone,
    )
    (archive,) = tmp_path.glob('asl_mmdet-*.tar.gz')
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / 'source', filter='data')
    (source,) = (tmp_path / 'source').iterdir()
    assert {'tests/conftest.py', 'Makefile', 'CITATION.cff', 'requirements/onedl.lock'} <= files(source)
    (tmp_path / 'wheel').mkdir()
    again = build_wheel(source, tmp_path / 'wheel')

    def content(path):
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in archive.namelist() if not name.endswith('/RECORD')}

    assert content(again) == content(wheel)


# ------------------------------------------------------------------------------------------------------------ the types


def public_functions():
    """Functions and methods of what ``asl_mmdet`` exports, inherited ones of other packages aside."""
    for name in asl_mmdet.__all__:
        value = getattr(asl_mmdet, name)
        for member in vars(value).values() if inspect.isclass(value) else ():
            function = getattr(member, '__func__', getattr(member, 'fget', member))
            public = inspect.isfunction(function) and (function.__name__ == '__init__' or function.__name__[0] != '_')
            if public and function.__module__.startswith('asl_mmdet'):
                yield pytest.param(function, id=function.__qualname__)


@pytest.mark.parametrize('function', public_functions())
def test_public_functions_are_annotated(function):
    signature = inspect.signature(function)
    parameters = [one for name, one in signature.parameters.items() if name != 'self']
    missing = [one.name for one in parameters if one.annotation is one.empty and one.kind not in (one.VAR_KEYWORD,)]
    assert missing == []
    assert function.__name__ == '__init__' or signature.return_annotation is not signature.empty


@pytest.mark.slow
def test_mypy_finds_no_fault():
    pytest.importorskip('mypy', reason="pip install 'asl_mmdet[lint]'")
    run(sys.executable, '-m', 'mypy', cwd=ROOT)
