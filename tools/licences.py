"""List the licences of everything that the plugin is installed with, as docs/licences.md.

    python tools/licences.py docs/licences.md

Packages of another stack that the file lists already stay in it. Fails where a licence does not go with Apache-2.0.
"""

import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

COMPATIBLE = r'Apache|MIT|BSD|PSF|Python Software Foundation|MPL-2\.0|Mozilla|ISC|BSL-1\.0|Zlib|HPND|CC0|Unlicense'
# What nothing requires by name: torch is installed first, timm without its dependencies.
ROOTS = ('asl_mmdet[onedl,openmmlab,test]', 'torch', 'timm')
HEAD = """# Licences of the dependencies

`asl_mmdet` is Apache-2.0 (LICENSE). It contains no code of these packages; they are installed beside it. Wheels of
compiled packages (numpy, scipy, shapely, opencv, torch) bring libraries with licences of their own, which stand in the
wheels. Written by `python tools/licences.py docs/licences.md` from the packages' metadata.

| package | licence |
|---|---|
"""


def dependencies() -> dict[str, Distribution]:
    """Every installed package that the plugin, its extras or their dependencies ask for."""
    found, asked = {}, [Requirement(root) for root in ROOTS]
    seen = set()
    while asked:
        wanted = asked.pop()
        key = (normal(wanted.name), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            package = distribution(wanted.name)
        except PackageNotFoundError:
            continue
        found[key[0]] = package
        for text in package.requires or []:
            needed = Requirement(text)
            if not needed.marker or any(needed.marker.evaluate(dict(extra=e)) for e in (*wanted.extras, '')):
                asked.append(needed)
    found.pop('asl-mmdet', None)
    return found


def normal(name: str) -> str:
    return re.sub(r'[-_.]+', '-', name).lower()


def licence(package: Distribution) -> str:
    """Of the metadata: the expression, else the classifiers, else the field, else what the licence file begins with."""
    data = package.metadata
    if data.get('License-Expression'):
        return data['License-Expression']
    classes = [c.rsplit(' :: ', 1)[1] for c in data.get_all('Classifier') or [] if c.startswith('License :: OSI')]
    if [c for c in classes if c != 'OSI Approved']:
        return ', '.join(classes)
    field = (data.get('License') or '').strip()
    if field and '\n' not in field and re.search(COMPATIBLE + '|GPL', field):
        return field
    for file in package.files or []:
        if re.match(r'(LICEN[CS]E|COPYING)', file.name, re.IGNORECASE) and file.locate().is_file():
            name = re.search(r'Apache License|MIT License|BSD', file.locate().read_text(errors='replace')[:2000])
            if name:
                return name[0]
    return field.splitlines()[0] if field else 'unknown'


def table(text: str) -> dict[str, str]:
    return dict(re.findall(r'^\| ([\w-]+) \| (.+) \|$', text.partition('|---|---|')[2], re.MULTILINE))


def incompatible(licences: dict[str, str]) -> list[str]:
    return [
        f'{name}: {text}'
        for name, text in licences.items()
        if not re.search(COMPATIBLE, text) or re.search(r'\b(A?GPL|LGPL)', text)
    ]


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith('-'):
        sys.exit(__doc__)
    path = Path(sys.argv[1])
    listed = table(path.read_text(encoding='utf-8')) if path.is_file() else {}
    listed.update((name, licence(package)) for name, package in dependencies().items())
    faults = incompatible(listed)
    if faults:
        sys.exit('not to be had with Apache-2.0: ' + '; '.join(faults))
    rows = ''.join(f'| {name} | {text} |\n' for name, text in sorted(listed.items()))
    path.write_text(HEAD + rows, encoding='utf-8')


if __name__ == '__main__':
    main()
