"""Label Studio's JSON export: boxes and polygons into COCO JSON (OUT.json), choices for whole images into a table
(OUT.csv).

Its COCO export needs no conversion. Tasks that nobody has annotated are left out; one that was submitted without a
region is an image without labels.
"""

import argparse
import json
import math
import re
from collections import Counter
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from asl_mmdet.command_line import exit_on_known_faults
from asl_mmdet.datasets import AnnotationError
from asl_mmdet.datasets.conversion import (
    PICTURE_SUFFIXES,
    CocoFile,
    LabelTable,
    PictureFolder,
    classes_beside,
    listed,
    picture_size,
    read_classes,
    refuse_to_overwrite,
    report_missing,
)
from asl_mmdet.datasets.label_index import quoted
from asl_mmdet.progress import track

BOXES = ('rectanglelabels', 'labels')
# The form of a picture may differ so much from what Label Studio has seen: copies of another size have rounded sides.
TOLERANCE = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('export', type=Path, metavar='EXPORT.json', help='exported as JSON, not JSON-MIN')
    parser.add_argument('images', type=Path, help='folder in or below which the pictures are')
    parser.add_argument('out', type=Path, metavar='OUT.json|OUT.csv', help='boxes as .json, choices as .csv')
    parser.add_argument('--classes', metavar='FILE', help='names in their order, one a line (default: alphabetical)')
    parser.add_argument('--image-key', help='which of the data of a task is the image (default: the only one)')
    parser.add_argument(
        '--several',
        choices=('latest', 'union'),
        help='of several annotations of a task, take the latest, or the choices of all (.csv)',
    )
    parser.add_argument('--drop-missing', action='store_true', help='leave out pictures that are not there')
    parser.add_argument('--overwrite', action='store_true')
    args = parser.parse_args()
    if args.out.suffix not in ('.json', '.csv'):
        parser.error(f'{args.out}: boxes are written as .json, choices as .csv')
    as_table = args.out.suffix == '.csv'
    if args.several == 'union' and not as_table:
        parser.error('--several union: the boxes of several annotators show one object twice; take the latest')
    with exit_on_known_faults():
        refuse_to_overwrite([args.out, classes_beside(args.out)] if as_table else [args.out], args.overwrite)
        tasks, notes = finished_tasks(args.export, args.several)
        pictures = PictureFolder(args.images)
        named, missing = _named_tasks(tasks, args.export, pictures, args.image_key)
        notes += report_missing(missing, named, args.export, args.images, args.drop_missing)
        classes = read_classes(args.classes) if args.classes else None
        convert = choices_table if as_table else boxes_file
        written, more = convert(named, args.export, pictures, classes)
        written.write(args.out)
        print('\n'.join(written.report(args.out, args.images) + notes + more))


def finished_tasks(path: Path, several: str | None = None) -> tuple[list[tuple[dict, list[dict]]], list[str]]:
    """Tasks that have been annotated, each with its results; and lines for the screen.

    Raises:
        AnnotationError: the file is no such export, or a task has several annotations and ``several`` is None.
    """
    try:
        tasks = json.loads(path.read_text(encoding='utf-8-sig'))
    except (OSError, ValueError) as error:
        raise AnnotationError(f'{path} is not a JSON file: {error}') from None
    if isinstance(tasks, dict) and {'images', 'annotations', 'categories'} <= tasks.keys():
        raise AnnotationError(
            f'{path} is in COCO format already: CocoMultiLabelDataset and CocoDataset read it as it is'
        )
    if not isinstance(tasks, list) or not all(
        isinstance(task, dict) and isinstance(task.get('data'), dict) and isinstance(task.get('annotations'), list)
        for task in tasks
    ):
        raise AnnotationError(
            f"{path} is not a list of tasks with data and annotations: export it as 'JSON', not JSON-MIN"
        )
    finished, skipped, untouched = [], 0, 0
    for task in tasks:
        place = f'{path}, task {task.get("id")}'
        done = [one for one in task['annotations'] if isinstance(one, dict) and not one.get('was_cancelled')]
        if any(not isinstance(one.get('result'), list) for one in done):
            raise AnnotationError(f'{place}: an annotation has no list result')
        if not done:
            skipped, untouched = skipped + bool(task['annotations']), untouched + (not task['annotations'])
            continue
        if len(done) > 1 and several is None:
            raise AnnotationError(f'{place} has {len(done)} annotations: --several latest or union says what counts')
        if several == 'latest':
            done = [max(done, key=lambda one: str(one.get('updated_at') or one.get('created_at') or ''))]
        finished.append((task, [result for one in done for result in one['result']]))
    if not finished:
        raise AnnotationError(f'{path}: none of the {len(tasks):,} tasks has been annotated')
    notes = []
    if untouched:
        notes.append(f'{untouched:,} tasks that nobody has annotated are left out')
    if skipped:
        notes.append(f'{skipped:,} tasks that were skipped by who looked at them are left out')
    return finished, notes


def image_of(task: dict, place: str, image_key: str | None = None) -> str:
    """Path of a task's image, without server, query and percent signs.

    Raises:
        AnnotationError: the task has no image, or several.
    """
    data = {key: value for key, value in task['data'].items() if isinstance(value, str)}
    if image_key is None:
        keys = [key for key, value in data.items() if _path(value).lower().endswith(PICTURE_SUFFIXES)]
        if len(keys) != 1:
            raise AnnotationError(
                f'{place}: {len(keys) or "none"} of its data ({quoted(sorted(task["data"]))}) name a picture: '
                '--image-key says which'
            )
        image_key = keys[0]
    if image_key not in data:
        raise AnnotationError(f'{place}: data has no text {quoted(image_key)}, but {quoted(sorted(task["data"]))}')
    return _path(data[image_key])


def _path(url):
    if '://' not in url and '?' not in url:
        return unquote(url)
    parts = urlsplit(url)
    # /data/local-files/?d=folder/name.jpg; s3://bucket/folder/name.jpg
    local = parse_qs(parts.query).get('d')
    return local[0] if local else unquote(parts.path)


def _named_tasks(tasks, export, pictures, image_key):
    """(name of the picture, results, place in the export), by name; and pictures that are not there."""
    named, missing = {}, []
    for task, results in tasks:
        place = f'{export}, task {task.get("id")}'
        path = image_of(task, place, image_key)
        # An upload gets eight hexadecimal digits in front of its name.
        name = pictures.find(path) or pictures.find(re.sub(r'(^|.*/)[0-9a-f]{8}-([^/]+)$', r'\2', path))
        if name is None:
            missing.append(path)
        elif name in named:
            raise AnnotationError(f'{place} is of {pictures.root / name}, as is {named[name][1]}: remove one of them')
        else:
            named[name] = (results, place)
    return sorted((name, results, place) for name, (results, place) in named.items()), missing


def choices_table(named, export, pictures, classes) -> tuple[LabelTable, list[str]]:
    """
    Raises:
        AnnotationError: there are no choices for whole images.
    """
    chosen, others = {}, Counter()
    for name, results, place in track(named, 'Pictures'):
        picture_size(pictures.root / name)
        chosen[name] = set()
        for result in results:
            kind, value = _kind(result, place)
            if kind == 'choices' and 'x' not in value and 'points' not in value:
                chosen[name].update(_labels(value, kind, place))
            else:
                others[f'{kind} of regions' if kind == 'choices' else kind] += 1
    found = set().union(*chosen.values())
    if not found:
        raise AnnotationError(
            f'{export} has no choices for whole images, but {listed(others) or "nothing"}. Boxes are written as '
            'OUT.json, which CocoMultiLabelDataset reads as labels'
        )
    table = LabelTable(_ordered(found, classes, export), export)
    table.rows.update(chosen)
    return table, [f'left out: {listed(others)}'] if others else []


def boxes_file(named, export, pictures, classes) -> tuple[CocoFile, list[str]]:
    """
    Raises:
        AnnotationError: there are no boxes, or a region is wrong.
    """
    images, others, rotated = [], Counter(), 0
    for name, results, place in track(named, 'Pictures'):
        size, regions = picture_size(pictures.root / name), []
        for result in results:
            kind, value = _kind(result, place)
            polygon = kind == 'polygonlabels' or kind == 'labels' and 'points' in value
            if not polygon and (kind not in BOXES or 'width' not in value):
                others[kind] += 1
                continue
            labels = _labels(value, kind, place)
            if not labels:
                others[f'{kind} without a label'] += 1
                continue
            _check_size(result, size, f'{place}, {name}')
            corners = (_points if polygon else _rectangle)(value, size, place)
            rotated += not polygon and bool(value.get('rotation'))
            regions += [(label, corners, polygon) for label in labels]
        images.append((name, size, regions))
    found = {label for _, _, regions in images for label, _, _ in regions}
    if not found:
        raise AnnotationError(
            f'{export} has no boxes or polygons with labels, but {listed(others) or "nothing"}. Choices for whole '
            'images are written as OUT.csv'
        )
    coco = CocoFile(_ordered(found, classes, export), export)
    for name, size, regions in images:
        coco.add_image(name, size)
        for label, corners, polygon in regions:
            coco.add_box(label, corners, polygon)
    notes = [f'{rotated:,} boxes are rotated: the upright box around each is written'] if rotated else []
    return coco, notes + ([f'left out: {listed(others)}'] if others else [])


def _kind(result, place):
    kind, value = (result.get('type'), result.get('value')) if isinstance(result, dict) else (None, None)
    if not isinstance(kind, str) or not (isinstance(value, dict) or kind == 'relation'):
        raise AnnotationError(f'{place}: {quoted(result)} has no type and value')
    return kind, value or {}


def _labels(value, kind, place):
    labels = value.get(kind)
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise AnnotationError(f'{place}: {kind} is {quoted(labels)}, not a list of names')
    return [label.strip() for label in labels]


def _numbers(values, place):
    if not all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) for value in values
    ):
        raise AnnotationError(f'{place}: a region has the numbers {quoted(list(values))}, not percentages of the image')
    return values


def _points(value, size, place):
    """In pixels."""
    points = value['points']
    if not isinstance(points, list) or len(points) < 3 or any(not isinstance(p, list) or len(p) != 2 for p in points):
        raise AnnotationError(f'{place}: a polygon has the points {quoted(points)}, not three or more of x and y')
    return [tuple(n * side / 100 for n, side in zip(_numbers(point, place), size)) for point in points]


def _rectangle(value, size, place):
    """Corners in pixels; it is rotated in degrees, clockwise, around its left upper corner."""
    x, y, width, height = _numbers([value.get(key) for key in ('x', 'y', 'width', 'height')], place)
    (angle,) = _numbers([value.get('rotation') or 0], place)
    if min(width, height) < 0:
        raise AnnotationError(f'{place}: a box is {quoted(width)} by {quoted(height)} percent')
    left, top, width, height = (number * side / 100 for number, side in zip((x, y, width, height), (*size, *size)))
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return [
        (left + a * width * cos - b * height * sin, top + a * width * sin + b * height * cos)
        for a in (0, 1)
        for b in (0, 1)
    ]


def _check_size(result, size, place):
    """Percentages hold for copies of another size, but not of another form."""
    seen = (result.get('original_width'), result.get('original_height'))
    if result.get('image_rotation'):
        raise AnnotationError(
            f'{place} was annotated after turning it by {result["image_rotation"]} degrees: turn the file'
        )
    if all(isinstance(side, (int, float)) and side > 0 for side in seen):
        if abs(seen[0] * size[1] / (seen[1] * size[0]) - 1) > TOLERANCE:
            raise AnnotationError(
                f'{place} is {size[0]} x {size[1]}, but was annotated as {seen[0]} x {seen[1]}: is it another picture?'
            )


def _ordered(found, classes, export):
    if classes is not None and found - set(classes):
        raise AnnotationError(f'{export}: the label {quoted(min(found - set(classes)))} is not among --classes')
    return classes or sorted(found)


if __name__ == '__main__':
    main()
