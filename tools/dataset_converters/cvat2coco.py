"""CVAT's export 'CVAT for images 1.1': boxes and polygons into COCO JSON (OUT.json), tags into a table (OUT.csv).

Its COCO export needs no conversion, but lacks the tags. An image without shapes or tags is an image without labels.
"""

import argparse
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from asl_mmdet.command_line import exit_on_known_faults
from asl_mmdet.datasets import AnnotationError
from asl_mmdet.datasets.conversion import (
    CocoFile,
    LabelTable,
    PictureFolder,
    classes_beside,
    listed,
    picture_size,
    refuse_to_overwrite,
    report_missing,
)
from asl_mmdet.datasets.label_index import quoted
from asl_mmdet.progress import track

SHAPES = ('box', 'polygon', 'polyline', 'points', 'ellipse', 'cuboid', 'mask', 'skeleton')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('export', type=Path, metavar='ANNOTATIONS.xml')
    parser.add_argument('images', type=Path, help='folder in or below which the pictures are')
    parser.add_argument('out', type=Path, metavar='OUT.json|OUT.csv', help='boxes as .json, tags as .csv')
    parser.add_argument('--subset', help='only the images of this subset, such as train (default: all)')
    parser.add_argument('--drop-missing', action='store_true', help='leave out pictures that are not there')
    parser.add_argument('--overwrite', action='store_true')
    args = parser.parse_args()
    if args.out.suffix not in ('.json', '.csv'):
        parser.error(f'{args.out}: boxes are written as .json, tags as .csv')
    as_table = args.out.suffix == '.csv'
    with exit_on_known_faults():
        refuse_to_overwrite([args.out, classes_beside(args.out)] if as_table else [args.out], args.overwrite)
        export = read_export(args.export)
        pictures = PictureFolder(args.images)
        named, missing = _named_images(export, pictures, args.subset)
        notes = report_missing(missing, named, args.export, args.images, args.drop_missing)
        written, more = (tags_table if as_table else boxes_file)(named, export, pictures)
        written.write(args.out)
        print('\n'.join(written.report(args.out, args.images) + notes + more))


@dataclass
class Element:
    """A shape or tag, or an image with its shapes and tags in ``parts``; ``place`` names the file and the line."""

    kind: str
    attributes: dict[str, str]
    place: str
    parts: list['Element'] = field(default_factory=list)

    def number(self, name: str) -> float:
        """
        Raises:
            AnnotationError: the attribute is no finite number.
        """
        try:
            value = float(self.attributes[name])
        except (KeyError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise AnnotationError(
                f'{self.place}: <{self.kind}> has {name} {quoted(self.attributes.get(name))}, no number'
            )
        return value


@dataclass
class Export:
    path: Path
    classes: list[str] = field(default_factory=list)
    images: list[Element] = field(default_factory=list)
    attributes: int = 0


def read_export(path: Path) -> Export:
    """
    Raises:
        AnnotationError: the file is not XML, of another format of CVAT's, or a shape has no label that it declares.
    """
    export, open_elements, text = Export(path), [], []
    parser = expat.ParserCreate()

    def start(kind: str, attributes: dict[str, str]) -> None:
        place = f'{path}, line {parser.CurrentLineNumber}'
        parent = open_elements[-1] if open_elements else ''
        if not parent and kind != 'annotations':
            raise AnnotationError(f"{place}: <{kind}> is not the beginning of CVAT's annotations")
        if kind == 'track':
            raise AnnotationError(f"{place}: a track of a video; export it as 'CVAT for images 1.1'")
        if kind == 'image' and parent == 'annotations':
            export.images.append(Element(kind, attributes, place))
        elif parent == 'image' and kind in (*SHAPES, 'tag'):
            export.images[-1].parts.append(Element(kind, attributes, place))
        elif kind == 'attribute' and parent in (*SHAPES, 'tag'):
            export.attributes += 1
        open_elements.append(kind)
        text.clear()

    def end(kind: str) -> None:
        open_elements.pop()
        # A part of a skeleton is a label, too, with a parent of its own.
        if kind == 'name' and open_elements[-2:] == ['labels', 'label']:
            export.classes.append(''.join(text).strip())
        text.clear()

    def refuse_entities(*_) -> None:
        raise AnnotationError(f'{path} declares entities, which no export of CVAT does')

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text.append
    parser.EntityDeclHandler = refuse_entities
    try:
        parser.Parse(path.read_bytes(), True)
    except OSError as error:
        raise AnnotationError(f'{path} cannot be read: {error}') from None
    except expat.ExpatError as error:
        raise AnnotationError(f'{path} is not an XML file: {error}') from None
    if not export.classes:
        raise AnnotationError(f'{path} declares no labels under <meta>: export it as CVAT for images 1.1')
    # A project declares them once for itself, and an older export once for each task.
    export.classes = list(dict.fromkeys(export.classes))
    for image in export.images:
        for part in image.parts:
            if part.attributes.get('label') not in export.classes:
                raise AnnotationError(
                    f'{part.place}: <{part.kind}> has the label {quoted(part.attributes.get("label"))}, which <meta> '
                    f'does not declare. It declares {quoted(export.classes)}'
                )
    return export


def _named_images(export, pictures, subset):
    """(name of the picture, image), by name; and pictures that are not there."""
    subsets = {image.attributes.get('subset') for image in export.images}
    if subset is not None and subset not in subsets:
        known = sorted(one for one in subsets if one)
        raise AnnotationError(
            f'{export.path} has no subset {quoted(subset)}; its subsets: {", ".join(known) or "none"}'
        )
    named, missing = {}, []
    for image in export.images:
        own = image.attributes.get('subset')
        if subset is not None and own != subset:
            continue
        path = image.attributes.get('name', '')
        name = (own and pictures.find(f'{own}/{path}')) or pictures.find(path)
        if name is None:
            missing.append(path)
        elif name in named:
            raise AnnotationError(
                f'{image.place} is of {pictures.root / name}, as is {named[name].place}: remove one of them'
            )
        else:
            named[name] = image
    if not named and not missing:
        raise AnnotationError(f'{export.path} has no images')
    return sorted(named.items(), key=lambda item: item[0]), missing


def tags_table(named, export: Export, pictures: PictureFolder) -> tuple[LabelTable, list[str]]:
    """
    Raises:
        AnnotationError: there are no tags.
    """
    table, others = LabelTable(export.classes, export.path), Counter()
    for name, image in track(named, 'Pictures'):
        picture_size(pictures.root / name)
        table.rows[name] = {part.attributes['label'] for part in image.parts if part.kind == 'tag'}
        others.update(part.kind for part in image.parts if part.kind != 'tag')
    if not any(table.rows.values()):
        raise AnnotationError(
            f'{export.path} has no tags, but {listed(others) or "nothing"}. Boxes are written as OUT.json, which '
            'CocoMultiLabelDataset reads as labels'
        )
    return table, _left_out(others, export)


def boxes_file(named, export: Export, pictures: PictureFolder) -> tuple[CocoFile, list[str]]:
    """
    Raises:
        AnnotationError: there are no boxes or polygons, or a picture has another size than in CVAT.
    """
    coco, others, rotated = CocoFile(export.classes, export.path), Counter(), 0
    for name, image in track(named, 'Pictures'):
        size = picture_size(pictures.root / name)
        seen = int(image.number('width')), int(image.number('height'))
        if seen != size:
            raise AnnotationError(
                f'{image.place}: {name} is {seen[0]} x {seen[1]} in CVAT, but {size[0]} x {size[1]} in {pictures.root}'
                ': give the pictures that were annotated'
            )
        coco.add_image(name, size)
        for part in image.parts:
            if part.kind not in ('box', 'polygon'):
                others[part.kind] += 1
                continue
            corners = _box(part) if part.kind == 'box' else _polygon(part)
            rotated += part.kind == 'box' and bool(float(part.attributes.get('rotation', 0)))
            coco.add_box(part.attributes['label'], corners, polygon=part.kind == 'polygon')
    if not coco.annotations and not coco.tiny:
        raise AnnotationError(
            f'{export.path} has no boxes or polygons, but {listed(others) or "nothing"}. Tags are written as OUT.csv'
        )
    notes = [f'{rotated:,} boxes are rotated: the upright box around each is written'] if rotated else []
    return coco, notes + _left_out(others, export)


def _box(part):
    """Corners; CVAT rotates in degrees, clockwise, around the centre."""
    left, top, right, bottom = (part.number(name) for name in ('xtl', 'ytl', 'xbr', 'ybr'))
    if right < left or bottom < top:
        raise AnnotationError(f'{part.place}: <box> ends before it begins: {quoted(part.attributes)}')
    angle = math.radians(part.number('rotation') if 'rotation' in part.attributes else 0)
    x, y, a, b = (left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2
    cos, sin = math.cos(angle), math.sin(angle)
    return [(x + i * a * cos - j * b * sin, y + i * a * sin + j * b * cos) for i in (-1, 1) for j in (-1, 1)]


def _polygon(part):
    text = part.attributes.get('points', '')
    try:
        points = [tuple(map(float, point.split(','))) for point in text.split(';')]
    except ValueError:
        points = []
    if len(points) < 3 or not all(len(point) == 2 and all(map(math.isfinite, point)) for point in points):
        raise AnnotationError(f'{part.place}: <polygon> has the points {quoted(text)}, not three or more of x,y')
    return points


def _left_out(others, export):
    if export.attributes:
        others['attributes'] = export.attributes
    return [f'left out: {listed(others)}'] if others else []


if __name__ == '__main__':
    main()
