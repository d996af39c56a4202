import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_tool

sys.path.insert(0, str(ROOT / 'tools'))
import licences  # noqa: E402

LISTED = licences.table((ROOT / 'docs/licences.md').read_text(encoding='utf-8'))


def test_every_dependency_that_is_installed_is_listed_and_goes_with_apache():
    installed = {name: licences.licence(package) for name, package in licences.dependencies().items()}
    assert {'torch', 'numpy', 'pytest', 'pycocotools'} < installed.keys() and len(installed) > 40
    assert installed.keys() - LISTED.keys() == set(), 'run tools/licences.py docs/licences.md'
    assert licences.incompatible(installed) == [] == licences.incompatible(LISTED)
    assert 'unknown' not in installed.values()


@pytest.mark.parametrize('text', ['GPL-3.0', 'LGPLv3', 'AGPL-3.0-only', 'Proprietary', 'unknown', 'MIT AND GPL-2.0'])
def test_what_does_not_go_with_apache_is_refused(text):
    assert licences.incompatible({'x': text}) == [f'x: {text}']


def test_the_list_is_written_anew_with_the_other_stack_kept(tmp_path):
    path = tmp_path / 'licences.md'
    path.write_text(licences.HEAD + '| mmdet-of-another-stack | MIT |\n| numpy | wrong |\n')
    done = run_tool('tools/licences.py', path)
    assert done.returncode == 0, done.stdout
    written = licences.table(path.read_text())
    assert written['mmdet-of-another-stack'] == 'MIT' and written['numpy'] == LISTED['numpy']
    path.write_text(licences.HEAD + '| evil | GPL-3.0 |\n')
    assert 'evil: GPL-3.0' in run_tool('tools/licences.py', path).stdout


def test_the_licence_of_the_product():
    assert (ROOT / 'LICENSE').read_text().split()[:4] == ['Apache', 'License', 'Version', '2.0,']
    assert "license='Apache-2.0'" in Path(ROOT / 'setup.py').read_text()
