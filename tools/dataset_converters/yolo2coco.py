"""YOLO's text files into COCO JSON, one for each split: images/**/NAME.jpg with labels/**/NAME.txt, or side by side.

SOURCE is data.yaml or a text file of the class names (classes.txt, obj.names), or the folder in which it lies. A line
holds a class and a box, or a polygon, in fractions of the image.
"""

import argparse
import math
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path, PurePosixPath

import yaml

from asl_mmdet.command_line import exit_on_known_faults
from asl_mmdet.datasets import AnnotationError
from asl_mmdet.datasets.conversion import (
    CocoFile,
    PictureFolder,
    picture_size,
    read_classes,
    refuse_to_overwrite,
    report_missing,
)
from asl_mmdet.datasets.label_index import quoted
from asl_mmdet.progress import track

SPLITS = ('train', 'val', 'test')
OTHER_SPLITS = ('training', 'valid', 'validation', 'testing', 'dev', 'eval')
CLASS_FILES = ('classes.txt', 'obj.names', 'labels/classes.txt')
# Labellers round: a number may lie so far outside [0, 1].
TOLERANCE = 0.01

_SPLIT_HINT = '; --split names the splits to write'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, help='data.yaml, a file of class names, or a folder')
    parser.add_argument('out', type=Path, help='folder for SPLIT.json, or instances.json where there are no splits')
    parser.add_argument('--root', type=Path, help="folder of pictures and labels (default: the source's)")
    parser.add_argument('--split', nargs='+', choices=SPLITS, help='which splits of data.yaml to write (default: all)')
    parser.add_argument('--drop-missing', action='store_true', help='leave out what has no picture')
    parser.add_argument('--overwrite', action='store_true')
    args = parser.parse_args()
    with exit_on_known_faults():
        source = find_description(args.source)
        described = read_description(source)
        named = [split for split in SPLITS if described.get(split)]
        absent = ' '.join(split for split in args.split or () if split not in named)
        if absent:
            raise AnnotationError(f'{source} has no {absent}; --split may be any of {quoted(named)}')
        splits = [split for split in named if split in (args.split or named)] or ['instances']
        outs = {split: args.out / f'{split}.json' for split in splits}
        refuse_to_overwrite(outs.values(), args.overwrite)
        folder = args.source if args.source.is_dir() else source.parent
        export = YoloExport(source, described, PictureFolder(args.root or folder))
        names, missing = {}, []
        for split in splits:
            names[split], gone = export.names(split)
            missing += gone
        found = set().union(*names.values())
        missing += export.labels_without_picture(found)
        notes = report_missing(missing, found, source, export.pictures.root, args.drop_missing)
        for one, other in combinations(splits, 2):
            both = len(set(names[one]) & set(names[other]))
            notes += [f'{both:,} pictures are in both {one} and {other}'] if both else []
        others = export.pictures.other_files(('.txt', '.yaml', '.yml'))
        notes += [others] if others else []
        converted = {split: export.convert(split, names[split]) for split in splits}
        for split, (coco, more) in converted.items():
            coco.write(outs[split])
            print('\n'.join(coco.report(outs[split], export.pictures.root) + more))
        for note in notes:
            print(note)


def find_description(source: Path) -> Path:
    """data.yaml or the file that names the classes.

    Raises:
        AnnotationError: there is none, or several.
    """
    if source.is_file():
        return source
    found = sorted([*source.glob('*.yaml'), *source.glob('*.yml')])
    found = found or [source / name for name in CLASS_FILES if (source / name).is_file()][:1]
    if len(found) != 1:
        several = ' and '.join(path.name for path in found) or f'neither data.yaml nor {CLASS_FILES[0]}'
        raise AnnotationError(f'{source} has {several}: name the file that names the classes')
    return found[0]


def read_description(path: Path) -> dict:
    """``names``, and what else data.yaml says.

    Raises:
        AnnotationError: it names no classes, their numbers have gaps, or a split has another name than ``SPLITS``.
    """
    if path.suffix not in ('.yaml', '.yml'):
        return dict(names=read_classes(path))
    try:
        described = yaml.safe_load(path.read_text(encoding='utf-8-sig'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AnnotationError(f'{path} is not a YAML file: {" ".join(str(error).split())}') from None
    names = described.get('names') if isinstance(described, dict) else None
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list):
        raise AnnotationError(
            f'{path}: names is {quoted(names)}, neither a list of names nor numbers from 0 with names'
        )
    for name in names:
        if isinstance(name, bool) or not isinstance(name, (str, int)):
            raise AnnotationError(f'{path}: names holds {quoted(name)}, which is no text: put the name in quotes')
    for key in described:
        if key not in SPLITS and str(key).lower() in SPLITS + OTHER_SPLITS and described[key]:
            raise AnnotationError(f'{path}: {key} is none of the splits {", ".join(SPLITS)}: rename it')
    if described.get('nc', len(names)) != len(names):
        raise AnnotationError(f'{path}: nc is {quoted(described["nc"])}, but {len(names)} classes have names')
    return dict(described, names=[str(name) for name in names])


class YoloExport:
    """Pictures, their label files, and what ``read_description`` found in ``source``."""

    def __init__(self, source: Path, described: dict, pictures: PictureFolder) -> None:
        self.source, self.described, self.pictures = source, described, pictures
        # As label_file calls them: a.TXT is a label file, too.
        self.label_files = {f'{name[:-4]}.txt': name for name in pictures.other_names if name.lower().endswith('.txt')}

    def convert(self, split: str, names: Sequence[str]) -> tuple[CocoFile, list[str]]:
        """The COCO file of the pictures of a split, and lines for the screen.

        Raises:
            AnnotationError: all label files are missing, or a line or a name of a class is wrong.
        """
        coco = CocoFile(self.described['names'], self.source)
        keypoints = 'kpt_shape' in self.described
        notes, unlabelled, repeated = [], 0, 0
        for name in track(names, f'Pictures of {split}'):
            size = picture_size(self.pictures.root / name)
            coco.add_image(name, size)
            if label_file(name) not in self.label_files:
                unlabelled += 1
                continue
            path, seen = self.pictures.root / self.label_files[label_file(name)], set()
            for number, line in _lines(path):
                if line in seen:
                    repeated += 1
                    continue
                seen.add(line)
                column, points = parse_line(line, len(coco.classes), keypoints, f'{path}, line {number}')
                corners = [(x * size[0], y * size[1]) for x, y in points]
                coco.add_box(coco.classes[column], corners, polygon=len(points) > 2)
        if unlabelled == len(names):
            raise AnnotationError(
                f'none of the {len(names):,} pictures of {split} has a label file, such as '
                f'{self.pictures.root / label_file(names[0])}{_SPLIT_HINT if split in SPLITS else ""}'
            )
        if unlabelled:
            notes.append(f'{unlabelled:,} images have no label file, and count as images without labels')
        if repeated:
            notes.append(f'{repeated:,} lines that repeat another one of their file are left out')
        if keypoints:
            notes.append('key points are left out')
        return coco, notes

    def names(self, split: str) -> tuple[list[str], list[str]]:
        """Pictures of a split, or all where the description has no splits; and entries of its lists that are not there.

        Raises:
            AnnotationError: there are none, or two have one label file.
        """
        entries = self.described.get(split, '.')
        found, missing = {}, []
        for entry in entries if isinstance(entries, list) else [entries]:
            path = self._below_root(str(entry), split)
            if path.is_file():
                for _, line in _lines(path):
                    name = self.pictures.find(line)
                    if name is None:
                        missing.append(line)
                    else:
                        found[name] = None
            else:
                folder = path.relative_to(self.pictures.root).as_posix()
                found.update(
                    {name: None for name in self.pictures.names if folder == '.' or name.startswith(f'{folder}/')}
                )
        if not found:
            raise AnnotationError(
                f'{self.source}: {split}: {quoted(entries)} has no picture{_SPLIT_HINT if split in SPLITS else ""}'
            )
        clash = {}
        for name in found:
            other = clash.setdefault(label_file(name), name)
            if other != name:
                raise AnnotationError(
                    f'{self.pictures.root / other} and {name} have one label file, {label_file(name)}: rename one'
                )
        return sorted(found), missing

    def _below_root(self, entry, split):
        """A folder or list of a split. Roboflow writes ../train/images for what is train/images."""
        root = self.pictures.root
        path = str(self.described.get('path') or '')
        for candidate in (root / path / entry, root / entry, root / entry.removeprefix('../')):
            inside = Path(os.path.abspath(candidate))
            if inside.is_relative_to(os.path.abspath(root)) and inside.exists():
                return root / inside.relative_to(os.path.abspath(root))
        raise AnnotationError(
            f'{self.source}: {split}: {quoted(entry)} is neither a folder nor a list below {root}; --root names the '
            'folder of the pictures, --split the splits to write'
        )

    def labels_without_picture(self, names: Iterable[str]) -> list[str]:
        """Label files in or below the label folders of ``names`` that no picture has."""
        known = {label_file(name) for name in self.pictures.names} | {'train.txt', 'val.txt', 'test.txt'}
        folders = {label_folder(name) for name in names}
        return [
            f'{file} without a picture'
            for label, file in self.label_files.items()
            if label not in known
            and posixpath.basename(label) != 'classes.txt'
            and not any(part.startswith('.') for part in label.split('/'))
            and any(str(folder) in folders for folder in PurePosixPath(label).parents)
        ]


def label_file(picture: str) -> str:
    """images/train/a.jpg: labels/train/a.txt; without a folder images, beside the picture."""
    before, images, behind = f'/{picture}'.rpartition('/images/')
    return posixpath.splitext((f'{before}/labels/{behind}' if images else f'/{picture}')[1:])[0] + '.txt'


def label_folder(picture: str) -> str:
    """images/train/a.jpg: labels; without a folder images, the picture's."""
    before, images, _ = f'/{picture}'.rpartition('/images/')
    return f'{before}/labels'[1:] if images else posixpath.dirname(picture) or '.'


def parse_line(line: str, num_classes: int, keypoints: bool, place: str) -> tuple[int, list[tuple[float, float]]]:
    """The class, and two corners of a box or the points of a polygon, (x, y) in fractions of the image.

    Raises:
        AnnotationError: the line is neither.
    """
    first, *rest = line.split()
    if not first.isascii() or not first.isdigit() or int(first) >= num_classes:
        raise AnnotationError(f'{place}: class {quoted(first)} is none of 0 to {num_classes - 1}')
    try:
        numbers = [float(text) for text in rest]
    except ValueError:
        numbers = [math.nan]
    if keypoints:
        numbers = numbers[:4]
    if not all(-TOLERANCE <= number <= 1 + TOLERANCE for number in numbers):
        raise AnnotationError(f'{place}: {quoted(line)} is not in fractions of the image, 0 to 1')
    if len(numbers) == 4:
        x, y, width, height = numbers
        if min(width, height) < 0:
            raise AnnotationError(f'{place}: {quoted(line)} has a negative width or height')
        return int(first), [(x - width / 2, y - height / 2), (x + width / 2, y + height / 2)]
    if len(numbers) < 6 or len(numbers) % 2:
        hint = '; five numbers are a prediction with its confidence' if len(numbers) == 5 else ''
        raise AnnotationError(
            f'{place}: {quoted(line)} has {len(numbers)} numbers behind the class, neither a box (4) nor a polygon (6, '
            f'8, 10 ...){hint}'
        )
    return int(first), list(zip(numbers[::2], numbers[1::2]))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text(encoding='utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError(f'{path} is not a text file: {error}') from None
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, line.strip()


if __name__ == '__main__':
    main()
