"""Write a small detection data set of drawn shapes in COCO's format; the same arguments give the same files.

Images show 0 to 6 shapes of 6 classes in random size, rotation and colour on a textured background. Later shapes cover
earlier ones: boxes enclose what is visible, and a shape less than two fifths visible is not annotated.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

CLASSES = ('circle', 'ring', 'square', 'triangle', 'star', 'cross')
SPLITS = ('train', 'val')
MIN_VISIBLE = 0.4
MIN_AREA = 12  # pixels
MIN_SIZE = 12


def outline(name: str) -> list[np.ndarray]:
    """Contours of a shape inside the unit circle, filled by the even-odd rule: (points, 2) each."""

    def points(angles, radius):
        return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)

    full_circle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    if name == 'circle':
        return [points(full_circle, 1.0)]
    if name == 'ring':
        return [points(full_circle, 1.0), points(full_circle, 0.55)]
    if name == 'square':
        return [points(np.pi / 4 + np.arange(4) * np.pi / 2, 1.0)]
    if name == 'triangle':
        return [points(np.arange(3) * 2 * np.pi / 3, 1.0)]
    if name == 'star':
        return [points(np.arange(10) * np.pi / 5, np.where(np.arange(10) % 2, 0.42, 1.0))]
    arm, end = 0.3, 0.95
    return [
        np.array(
            [
                (-arm, -end),
                (arm, -end),
                (arm, -arm),
                (end, -arm),
                (end, arm),
                (arm, arm),
                (arm, end),
                (-arm, end),
                (-arm, arm),
                (-end, arm),
                (-end, -arm),
                (-arm, -arm),
            ]
        )
    ]


def draw_image(rng: np.random.Generator, size: int, class_probs: np.ndarray) -> tuple[np.ndarray, list[dict]]:
    """An image (size, size, 3) uint8 in BGR and the annotations (category index, bbox, area) of its visible shapes."""
    texture = cv2.resize(
        rng.uniform(80, 170, (6, 6, 3)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC
    )
    image = texture + rng.normal(0, 12, texture.shape)
    for _ in range(rng.integers(0, 4)):
        start, end = rng.integers(0, size, (2, 2)).tolist()
        cv2.line(image, start, end, rng.uniform(0, 255, 3).tolist(), 1)

    owner = np.full((size, size), -1)
    drawn = []
    for index in range(rng.choice(7, p=[0.1, 0.2, 0.2, 0.2, 0.1, 0.1, 0.1])):
        category = int(rng.choice(len(CLASSES), p=class_probs))
        radius = rng.uniform(0.1, 0.22) * size
        centre = rng.uniform(0.6 * radius, size - 0.6 * radius, 2)
        angle = rng.uniform(0, 2 * np.pi)
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        contours = [
            np.rint(contour @ rotation.T * radius + centre).astype(np.int32) for contour in outline(CLASSES[category])
        ]
        mask = cv2.fillPoly(np.zeros((size, size), np.uint8), contours, 1).astype(bool)
        colour = np.where(
            rng.random(3) < 0.5, rng.uniform(0, 70, 3), rng.uniform(185, 255, 3)
        )  # no grey of the texture
        image[mask] = colour + rng.normal(0, 8, (int(mask.sum()), 3))
        owner[mask] = index
        drawn.append((category, int(mask.sum())))

    annotations = []
    for index, (category, whole) in enumerate(drawn):
        rows, columns = np.nonzero(owner == index)
        if len(rows) < max(MIN_VISIBLE * whole, MIN_AREA):
            continue
        left, top = int(columns.min()), int(rows.min())
        bbox = [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]
        annotations.append(dict(category=category, bbox=bbox, area=len(rows)))
    return np.clip(image, 0, 255).astype(np.uint8), annotations


def write_split(root: Path, split: str, num_images: int, args: argparse.Namespace) -> dict[str, int]:
    """Pictures under ``root/split`` and ``root/annotations/split.json``; returns counts."""
    rng = np.random.default_rng([args.seed, SPLITS.index(split)])
    missing_rng = np.random.default_rng([args.seed, SPLITS.index(split), 1])
    class_probs = args.imbalance ** -np.linspace(0, 1, len(CLASSES))
    class_probs /= class_probs.sum()
    (root / split).mkdir(parents=True, exist_ok=True)
    images, annotations, left_out = [], [], 0
    for image_id in track(range(1, num_images + 1), description=split, transient=True):
        picture, drawn = draw_image(rng, args.size, class_probs)
        name = f'{image_id:06d}.png'
        if not cv2.imwrite(str(root / split / name), picture):
            raise OSError(f'cannot write {root / split / name}')
        images.append(dict(id=image_id, file_name=name, width=args.size, height=args.size))
        for shape in drawn:
            if split == 'train' and missing_rng.random() < args.missing_labels:
                left_out += 1
                continue
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=shape['category'] + 1,
                    bbox=shape['bbox'],
                    area=shape['area'],
                    iscrowd=0,
                )
            )
    (root / 'annotations').mkdir(exist_ok=True)
    content = dict(
        images=images,
        annotations=annotations,
        categories=[dict(id=number, name=name) for number, name in enumerate(CLASSES, 1)],
    )
    (root / 'annotations' / f'{split}.json').write_text(json.dumps(content))
    return dict(images=len(images), boxes=len(annotations), left_out=left_out)


def probability(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f'{text} does not lie in [0, 1)')
    return value


def ratio(text: str) -> float:
    value = float(text)
    if not value >= 1:
        raise argparse.ArgumentTypeError(f'{text} is below 1')
    return value


def pixels(text: str) -> int:
    value = int(text)
    if value < MIN_SIZE:
        raise argparse.ArgumentTypeError(f'{text} is below {MIN_SIZE}: some of the shapes would be too small for a box')
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path, help='folder to write into')
    parser.add_argument('--train', type=int, default=2400, help='training images')
    parser.add_argument('--val', type=int, default=150, help='validation images')
    parser.add_argument('--size', type=pixels, default=128, help='width and height in pixels')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--imbalance', type=ratio, default=1.0, help='how much commoner the first class is than the last'
    )
    parser.add_argument(
        '--missing-labels',
        type=probability,
        default=0.0,
        help='share of the training annotations that is left out; validation stays complete',
    )
    args = parser.parse_args()
    for split, num_images in zip(SPLITS, (args.train, args.val)):
        counts = write_split(args.out, split, num_images, args)
        left_out = f', {counts["left_out"]} boxes left out' if counts['left_out'] else ''
        print(f'{args.out / split}: {counts["images"]} images, {counts["boxes"]} boxes{left_out}')


if __name__ == '__main__':
    main()
