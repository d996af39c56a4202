"""Labels that somebody looked at again: a CSV of decisions, applied to any data set's index.

::

    image,class,decision
    images/im7.jpg,dog,positive         it shows a dog, which the annotations do not say
    images/im9.jpg,tree,negative        it shows no tree, although they say so
    images/im9.jpg,sky,unknown          nobody can tell: neither trained nor evaluated
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .csv_rows import csv_rows
from .label_index import AnnotationError, LabelIndex, Ragged, encode_names, normalize_names, quoted, suggestion

HEADER = ['image', 'class', 'decision']
# Where lists overlap, positive wins over unknown, and unknown over negative.
LIST_OF_DECISION = dict(positive='gt_label', unknown='gt_unknown', negative='gt_negative')


def read_corrections(path: str) -> list[tuple[int, bytes, str, str]]:
    """Line, normalized image name (``a.jpg`` for ``./a.jpg``), class and decision of each correction.

    Raises:
        AnnotationError: with the line, where the file is not of this format.
    """
    rows = csv_rows(path)
    header = [cell.strip() for cell in next(rows, (1, []))[1]]
    if header != HEADER:
        raise AnnotationError(f'{path} begins with {quoted(header)}, not with {",".join(HEADER)}')
    corrections = []
    for line, (image, name, decision) in rows:
        decision = decision.strip()
        if decision not in LIST_OF_DECISION:
            raise AnnotationError(
                f'{path}, line {line}: decision {quoted(decision)} is none of {", ".join(LIST_OF_DECISION)}'
            )
        try:
            names, _ = normalize_names(encode_names([image]))
        except AnnotationError as error:
            raise AnnotationError(f'{path}, line {line}: {error}') from None
        corrections.append((line, names[0], name, decision))
    return corrections


def correct(index: LabelIndex, path: str, ann_file: str, untagged_weight: float) -> tuple[LabelIndex, str]:
    """The index with the corrections of the file ``path``, and a line on what they changed.

    Args:
        ann_file: what the index was read from, for messages.
        untagged_weight: the data set's: at 1 a class that an image does not list is negative already, at 0 unknown.

    Raises:
        AnnotationError: with the line, where the file is not of its format, names an image or class that ``ann_file``
            has not, or speaks of one label twice.
    """
    corrections = read_corrections(path)
    rows_of_image = _rows_of(index, [image for _, image, _, _ in corrections])
    column_of_class = {name: column for column, name in enumerate(index.classes)}
    untagged = {1: 'negative', 0: 'unknown'}.get(untagged_weight)
    remove, add = ({name: [] for name in LIST_OF_DECISION.values()} for _ in range(2))
    said, changed, idle = {}, Counter(), []
    for line, image, name, decision in corrections:
        place, shown = f'{path}, line {line}: ', quoted(image.decode())
        if image not in rows_of_image:
            known = [other.decode() for other in index.names] if len(index) < 10000 else []
            raise AnnotationError(f'{place}{ann_file} has no image {shown}{suggestion(image.decode(), known)}')
        if name not in column_of_class:
            raise AnnotationError(f'{place}{ann_file} has no class {quoted(name)}{suggestion(name, index.classes)}')
        if (image, name) in said:
            raise AnnotationError(
                f'{place}class {quoted(name)} of {shown} is {decision}, and {" in line ".join(said[image, name])}. '
                'Leave one of the two'
            )
        said[image, name] = decision, str(line)
        column = column_of_class[name]
        there = {row: _decisions(index, row, column) for row in rows_of_image[image]}
        if all((found[0] if found else untagged) == decision for found in there.values()):
            idle.append(f'class {quoted(name)} of {shown}, which is {decision} already')
            continue
        changed[decision] += 1
        for row, found in there.items():
            for other in found:
                if other != decision:
                    remove[LIST_OF_DECISION[other]].append((row, column))
            if decision not in found:
                add[LIST_OF_DECISION[decision]].append((row, column))
    empty = Ragged.from_pairs([], [], len(index), len(index.classes))
    lists = {
        name: index.lists.get(name, empty).edited(remove[name], add[name])
        for name in LIST_OF_DECISION.values()
        if name in index.lists or add[name]
    }
    summary = f'{path}: {len(corrections):,} corrections, ' + ', '.join(
        f'{changed[decision]:,} labels become {decision}' for decision in LIST_OF_DECISION
    )
    if idle:
        summary += f'; {len(idle):,} change nothing, such as {idle[0]}'
    return replace(index, lists=lists), summary


def _decisions(index, row, column):
    """Those whose lists hold the label, the one that counts first."""
    return [
        decision
        for decision, name in LIST_OF_DECISION.items()
        if name in index.lists and column in index.lists[name][row]
    ]


def _rows_of(index: LabelIndex, images: Sequence[bytes]) -> dict[bytes, list[int]]:
    """The rows of each of these normalized names that the index has."""
    found = {}
    if images:
        wanted, (names, _) = np.unique(images), normalize_names(index.names)
        place = np.searchsorted(wanted, names).clip(max=len(wanted) - 1)
        for row in np.flatnonzero(wanted[place] == names).tolist():
            found.setdefault(names[row], []).append(row)
    return found
