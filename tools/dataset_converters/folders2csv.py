"""A folder of pictures for each label, into a table for CSVMultiLabelDataset.

A picture that lies in several folders, which is told by its bytes, gets all their labels in one row. Pictures that lie
in no folder have none.
"""

import argparse
import hashlib
from collections import defaultdict
from pathlib import Path

from asl_mmdet.command_line import exit_on_known_faults
from asl_mmdet.datasets import AnnotationError
from asl_mmdet.datasets.conversion import (
    LabelTable,
    PictureFolder,
    classes_beside,
    picture_size,
    read_classes,
    refuse_to_overwrite,
)
from asl_mmdet.datasets.label_index import quoted
from asl_mmdet.progress import track

SPLITS = {'train', 'training', 'val', 'valid', 'validation', 'test', 'testing'}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='folder with a folder of pictures for each label')
    parser.add_argument('out', type=Path, metavar='OUT.csv', help='table; OUT_classes.txt is written beside it')
    parser.add_argument(
        '--nested',
        choices=('first', 'all'),
        help='of folders within folders, the first is the label, or each on the way (dog/poodle: dog and poodle)',
    )
    parser.add_argument('--classes', metavar='FILE', help='names in their order, one a line (default: alphabetical)')
    parser.add_argument('--overwrite', action='store_true')
    args = parser.parse_args()
    if args.out.suffix != '.csv':
        parser.error(f'{args.out}: a table is written, OUT.csv')
    with exit_on_known_faults():
        refuse_to_overwrite([args.out, classes_beside(args.out)], args.overwrite)
        pictures = PictureFolder(args.folder)
        table, notes = label_table(pictures, args.nested, args.classes and read_classes(args.classes))
        table.write(args.out)
        notes = [*notes, pictures.other_files()]
        print('\n'.join(filter(None, table.report(args.out, args.folder) + notes)))


def label_table(
    pictures: PictureFolder, nested: str | None = None, classes: list[str] | None = None
) -> tuple[LabelTable, list[str]]:
    """The table, and lines for the screen.

    Raises:
        AnnotationError: the folders may be splits or nested labels, a picture cannot be read, or ``classes`` lacks one.
    """
    folders = sorted(path.name for path in pictures.root.iterdir() if path.is_dir() and not path.name.startswith('.'))
    if folders and {name.lower() for name in folders} <= SPLITS:
        raise AnnotationError(
            f'{pictures.root} has the folders {", ".join(folders)}, which are no labels: convert each to a table of '
            'its own, all with the --classes of the first'
        )
    labels_of = {name: name.split('/')[:-1] for name in pictures.names}
    deep = next((name for name, labels in labels_of.items() if len(labels) > 1), None)
    if deep and nested is None:
        raise AnnotationError(
            f'{pictures.root / deep} lies in a folder within a folder: --nested first or all says what its labels are'
        )
    if nested == 'first':
        labels_of = {name: labels[:1] for name, labels in labels_of.items()}
    found = {label for labels in labels_of.values() for label in labels} | set(folders)
    if classes is None:
        classes = sorted(found)
    elif found - set(classes):
        raise AnnotationError(f'{pictures.root}: the folder {quoted(min(found - set(classes)))} is not among --classes')
    table = LabelTable(classes, pictures.root)
    copies = 0
    for name, same in _by_content(pictures):
        table.rows[name] = {label for one in same for label in labels_of[one]}
        copies += len(same) - 1
    several = sum(len(labels) > 1 for labels in table.rows.values())
    notes = [f'{several:,} images have several labels']
    if copies:
        notes.append(f'{copies:,} files are copies, byte by byte, of an image that has a row: their labels are in it')
    used = set().union(*table.rows.values())
    unused = [name for name in classes if name not in used]
    if unused:
        notes.append(f'no picture has the label {", ".join(unused)}')
    return table, notes


def _by_content(pictures: PictureFolder) -> list[tuple[str, list[str]]]:
    """The first name of each picture, in their order, and all its names."""
    by_size, groups = defaultdict(list), []
    for name in track(pictures.names, 'Pictures'):
        picture_size(pictures.root / name)
        by_size[(pictures.root / name).stat().st_size].append(name)
    for names in track(by_size.values(), 'Looking for copies'):
        by_content = defaultdict(list)
        for name in names:
            # Files of a size of their own have no copies.
            digest = hashlib.sha256((pictures.root / name).read_bytes()).digest() if len(names) > 1 else None
            by_content[digest].append(name)
        groups += [(same[0], same) for same in by_content.values()]
    return sorted(groups)


if __name__ == '__main__':
    main()
