"""Rows of CSV files, whose faults are told with their lines."""

import csv
from collections.abc import Iterator, Sequence

from .label_index import AnnotationError, quoted


def csv_rows(path: str, delimiter: str = ',') -> Iterator[tuple[int, list[str]]]:
    """``(line, cells)`` of each row, a header included, of a UTF-8 file; blank lines do not count.

    Raises:
        AnnotationError: a row has another number of cells than the first, or its quotes are broken.
    """
    line, width, first_line = 1, None, 1
    with open(path, encoding='utf-8-sig', newline='') as file:
        # Quotes behind a space would be part of the field.
        reader = csv.reader(file, delimiter=delimiter, strict=True, skipinitialspace=delimiter != ' ')
        try:
            for cells in reader:
                if cells:
                    if width is None:
                        width, first_line = len(cells), line
                    if len(cells) != width:
                        raise AnnotationError(
                            f'{path}, line {line}: {len(cells)} fields {short_list(cells)}, but line '
                            f'{first_line} has {width}. A field that holds {delimiter!r} stands in '
                            'double quotes'
                        )
                    yield line, cells
                line = reader.line_num + 1
        except csv.Error as error:
            raise AnnotationError(f'{path}, the row that begins in line {line}: {error}') from None
        except UnicodeDecodeError:
            raise AnnotationError(
                f'{path}, line {_not_utf_8(path)}: not text in UTF-8; save it as such, in Excel as "CSV UTF-8"'
            ) from None


def _not_utf_8(path):
    """The first such line; a reader decodes many at once."""
    with open(path, 'rb') as file:
        for line, text in enumerate(file, 1):
            try:
                text.decode()
            except UnicodeDecodeError:
                return line


def short_list(cells: Sequence[str]) -> str:
    """What some cells hold, at most a line long."""
    return ', '.join(quoted(cell[:40]) for cell in cells[:12]) + (' ...' if len(cells) > 12 else '')
