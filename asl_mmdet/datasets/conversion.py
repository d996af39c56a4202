"""Other tools' exports into the files that our data sets and mmdet's read: pictures on disk, COCO JSON, tables."""

import csv
import io
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from .label_index import AnnotationError, quoted
from .whole_file import whole_file

PICTURE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
ORIENTATION = 0x0112  # EXIF's tag; 5 to 8 lie on their side
SEPARATORS = (';', '|', '\t')


def picture_size(path: str | Path) -> tuple[int, int]:
    """(width, height) in pixels from the file's header, upright as OpenCV loads it.

    Raises:
        AnnotationError: the file is no picture.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            exif = Image.Exif()
            exif.load(image.info.get('exif', b''))  # getexif() would decode a PNG
            lies = image.format in ('JPEG', 'MPO', 'PNG') and exif.get(ORIENTATION, 1) in (5, 6, 7, 8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = 'the file is empty' if os.path.isfile(path) and not os.path.getsize(path) else error
        raise AnnotationError(f'{path} is no picture that can be read: {reason}. Replace or remove it') from None
    return (height, width) if lies else (width, height)


class PictureFolder:
    """All pictures below a folder.

    ``names`` are their paths below it with '/', sorted; ``other_names`` those of the files that are none.

    Raises:
        AnnotationError: the folder is not there, or has no picture.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise AnnotationError(f'there is no folder {root}')
        self.names, self.other_names = [], []
        for folder, _, files in os.walk(self.root, followlinks=True):
            for file in files:
                path = Path(folder, file).relative_to(self.root)
                is_hidden = any(part.startswith('.') for part in path.parts)
                is_picture = path.suffix.lower() in PICTURE_SUFFIXES and not is_hidden
                (self.names if is_picture else self.other_names).append(path.as_posix())
        if not self.names:
            raise AnnotationError(f'{root} has no picture ({", ".join(PICTURE_SUFFIXES)})')
        self.names.sort()
        self.other_names.sort()
        self._by_last_part = defaultdict(list)
        for name in self.names:
            self._by_last_part[name.rpartition('/')[2]].append(name)

    def find(self, path: str) -> str | None:
        """The picture that an export calls ``path``: the one of that path, or whose path ends as ``path`` does, or the
        reverse; None where there is none. It lies below the folder whatever ``path`` says.

        Raises:
            AnnotationError: several do.
        """
        parts = [part for part in re.split(r'[\\/]', path) if part not in ('', '.')]
        fits = defaultdict(list)
        for name in self._by_last_part.get(parts[-1], ()) if parts else ():
            own = name.split('/')
            shared = min(len(own), len(parts))
            if own[-shared:] == parts[-shared:]:
                fits[shared].append(name)
        if not fits:
            return None
        best = fits[max(fits)]
        if '/'.join(parts) in best:
            return '/'.join(parts)
        if len(best) > 1:
            raise AnnotationError(
                f'{quoted(path)} may be {quoted(best[0])} or {quoted(best[1])} in {self.root}: give the folder '
                'in which only one of them lies'
            )
        return best[0]

    def other_files(self, expected: Sequence[str] = ()) -> str:
        """A line of the report on files of other suffixes than ``expected``, empty where there is nothing to tell."""
        paths = map(PurePosixPath, self.other_names)
        others = Counter(path.suffix or path.name for path in paths if path.suffix.lower() not in expected)
        return f'{others.total():,} files that are no pictures: {listed(others)}' if others else ''


class CocoFile:
    """A COCO JSON in the making. Ids count from 1, those of categories in the order of ``classes``.

    Raises:
        AnnotationError: a class is named twice, or not at all.
    """

    def __init__(self, classes: Sequence[str], source: str | Path) -> None:
        check_classes(classes, source)
        self.classes, self.source = list(classes), source
        self.images, self.annotations = [], []
        self.clipped = self.tiny = 0

    def add_image(self, name: str, size: tuple[int, int]) -> None:
        """``add_box`` belongs to the image that was added last."""
        self.images.append(dict(id=len(self.images) + 1, file_name=name, width=size[0], height=size[1]))

    def add_box(self, label: str, corners: Iterable[tuple[float, float]], polygon: bool = False) -> None:
        """The upright box around ``corners``, (x, y) in pixels, cut to the image; with ``polygon`` its outline too.

        One that has less than a pixel in width or height there is left out: training passes over it, but evaluation
        would count it as missed.
        """
        image = self.images[-1]
        size = np.array([image['width'], image['height']])
        points = np.asarray(list(corners), dtype=np.float64)
        low, high = points.min(0), points.max(0)
        # Boxes that were rounded reach out of the image by less than this.
        reaches_out = bool((low < -0.5).any() or (high > size + 0.5).any())
        low, high = np.clip(low, 0, size), np.clip(high, 0, size)
        width, height = high - low
        bbox = [round(float(value), 3) for value in (*low, width, height)]
        if min(bbox[2:]) < 1:
            self.tiny += 1
            return
        self.clipped += reaches_out
        entry = dict(
            id=len(self.annotations) + 1,
            image_id=image['id'],
            category_id=self.classes.index(label) + 1,
            bbox=bbox,
            area=round(float(width * height), 3),
            iscrowd=0,
        )
        if polygon:
            points = np.clip(points, 0, size)
            entry['segmentation'] = [[round(float(value), 3) for value in points.ravel()]]
        self.annotations.append(entry)

    def write(self, path: Path) -> None:
        # ASCII, since pycocotools reads it in the encoding of the machine.
        content = dict(
            images=self.images,
            annotations=self.annotations,
            categories=[dict(id=i, name=name) for i, name in enumerate(self.classes, 1)],
        )
        write_whole(path, json.dumps(content))

    def report(self, path: Path, image_folder: Path) -> list[str]:
        """Lines for the screen: counts, and how configs name the file."""
        with_boxes = len({entry['image_id'] for entry in self.annotations})
        counts = Counter(self.classes[entry['category_id'] - 1] for entry in self.annotations)
        lines = [
            f'{path}: {len(self.images):,} images, {len(self.images) - with_boxes:,} of them without labels; '
            f'{len(self.annotations):,} boxes. {_by_class(self.classes, counts)}'
        ]
        if self.clipped:
            lines.append(f'{self.clipped:,} boxes reached out of their image and were cut')
        if self.tiny:
            lines.append(
                f'{self.tiny:,} boxes have less than a pixel in width or height inside their image: left out, and are '
                'no labels of it'
            )
        return lines + [
            f"dict(type='{kind}', data_root='', ann_file='{path.as_posix()}', "
            f"data_prefix=dict({key}='{image_folder.as_posix()}/'), metainfo=dict(classes={tuple(self.classes)}))"
            for kind, key in (('CocoMultiLabelDataset', 'img_path'), ('CocoDataset', 'img'))
        ]


class LabelTable:
    """A CSV of image names and labels in the making, for ``CSVMultiLabelDataset``.

    ``rows`` maps names to labels; the text file of the classes stands beside the table.

    Raises:
        AnnotationError: a class is named twice, or not at all, or holds all of the separators.
    """

    def __init__(self, classes: Sequence[str], source: str | Path) -> None:
        check_classes(classes, source)
        self.classes = list(classes)
        self.rows: dict[str, set[str]] = {}
        free = [one for one in SEPARATORS if not any(one in name for name in classes)]
        if not free:
            raise AnnotationError(
                f'{source}: the classes hold {SEPARATORS}, one of which must separate them: rename one'
            )
        self.separator = free[0]

    def write(self, path: Path) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator='\n')
        writer.writerow(['image', 'labels'])
        for name, labels in self.rows.items():
            writer.writerow([name, self.separator.join(one for one in self.classes if one in labels)])
        write_whole(classes_beside(path), ''.join(f'{name}\n' for name in self.classes))
        write_whole(path, text.getvalue())

    def report(self, path: Path, image_folder: Path) -> list[str]:
        """Lines for the screen: counts, and how configs name the file."""
        counts = Counter(label for labels in self.rows.values() for label in labels)
        empty = sum(not labels for labels in self.rows.values())
        return [
            f'{path}: {len(self.rows):,} images, {empty:,} of them without labels; {counts.total():,} labels. '
            f'{_by_class(self.classes, counts)}',
            f"dict(type='CSVMultiLabelDataset', data_root='', ann_file='{path.as_posix()}', "
            f"data_prefix=dict(img_path='{image_folder.as_posix()}/'), "
            f"metainfo=dict(classes='{classes_beside(path).as_posix()}'), "
            f"label_form='names', label_separator={self.separator!r})",
        ]


def listed(counts: Counter) -> str:
    return ', '.join(f'{count:,} {name}' for name, count in sorted(counts.items()))


def classes_beside(table: Path) -> Path:
    return table.with_name(f'{table.stem}_classes.txt')


def read_classes(path: str | Path) -> list[str]:
    """Names of a text file, one a line.

    Raises:
        AnnotationError: the file is not there, not UTF-8, or empty.
    """
    try:
        # A blank line between others is a name that lacks, and check_classes says so.
        names = [line.strip() for line in Path(path).read_text(encoding='utf-8-sig').rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError(f'{path} with the names of the classes cannot be read: {error}') from None
    if not names:
        raise AnnotationError(f'{path} names no class; it has one name a line')
    return names


def check_classes(classes: Sequence[str], source: str | Path) -> None:
    for name, count in Counter(classes).items():
        if count > 1:
            raise AnnotationError(f'{source} names class {quoted(name)} twice')
        if name != name.strip() or not name or len(name.splitlines()) > 1:
            raise AnnotationError(f'{source}: {quoted(name)} is no name of a class: rename it')
    if not classes:
        raise AnnotationError(f'{source} has no classes')


def refuse_to_overwrite(paths: Iterable[Path], overwrite: bool) -> None:
    """
    Raises:
        AnnotationError: one of them exists, and ``overwrite`` is False.
    """
    for path in paths:
        if path.exists() and not overwrite:
            raise AnnotationError(f'{path} exists already; --overwrite replaces it')


def report_missing(
    missing: Sequence[str], found: Collection[str], source: str | Path, folder: str | Path, drop: bool
) -> list[str]:
    """
    Raises:
        AnnotationError: pictures are missing, and ``drop`` is False or none is found.
    """
    if not missing:
        return []
    some = ', '.join(missing[:10]) + (' ...' if len(missing) > 10 else '')
    if not found:
        raise AnnotationError(
            f'none of the {len(missing):,} pictures of {source} is in {folder}: {some}. Give the right folder'
        )
    message = f'{len(missing):,} pictures of {source} are not in {folder}: {some}'
    if not drop:
        raise AnnotationError(f'{message}. Give the right folder, or leave them out with --drop-missing')
    return [f'{message}; left out']


def write_whole(path: Path, text: str) -> None:
    """The whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(text.encode())


def _by_class(classes, counts):
    shown = ', '.join(f'{name} {counts[name]:,}' for name in classes[:30])
    return f'{len(classes):,} classes: {shown}{" ..." if len(classes) > 30 else ""}'
