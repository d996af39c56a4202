"""Pascal VOC 2007 as a multi-label set (section 4.1.2, appendix D)."""

import os.path as osp
import re
from xml.etree import ElementTree

import numpy as np
from mmdet.registry import DATASETS

from .conversion import PICTURE_SUFFIXES
from .label_index import AnnotationError, LabelIndex, Ragged, encode_names, first_repeated, quoted, suggestion
from .multi_label import MultiLabelDataset


@DATASETS.register_module()
class VOCMultiLabelDataset(MultiLabelDataset):
    """VOC's folder as it comes out of the archives (http://host.robots.ox.ac.uk/pascal/VOC/voc2007)::

        VOC2007/ImageSets/Main/trainval.txt     one image id a line: 5,011 of them, test.txt has 4,952
        VOC2007/Annotations/000005.xml          its objects, each with name and difficult
        VOC2007/JPEGImages/000005.jpg           or what its annotation's filename ends in

    Args:
        split: the file in ``ImageSets/Main``, without ``.txt``; ``ann_file`` overrides it.
        difficult: what a class is whose objects in the image are all marked difficult: ``'positive'``, ``'negative'``
            or ``'unknown'`` (in ``gt_unknown``, neither trained nor evaluated). By default ``'unknown'`` in test mode,
            as VOC evaluates, and ``'positive'`` in training, as is customary for multi-label models.

    ``data_root`` is the folder VOC2007, or one of your own data in this form, whose classes
    ``metainfo=dict(classes=[...])`` names, all of them. The other arguments are those of ``MultiLabelDataset``.
    """

    METAINFO = dict(
        classes=tuple(
            (
                'aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person '
                'pottedplant sheep sofa train tvmonitor'
            ).split()
        )
    )

    def __init__(
        self,
        ann_file: str = '',
        split: str = 'trainval',
        difficult: str | None = None,
        data_prefix: dict = dict(img_path='JPEGImages'),
        test_mode: bool = False,
        **kwargs,
    ):
        if difficult not in (None, 'positive', 'negative', 'unknown'):
            raise ValueError(f"difficult={difficult!r}: give 'positive', 'negative' or 'unknown'")
        self.difficult = difficult or ('unknown' if test_mode else 'positive')
        super().__init__(
            ann_file or f'ImageSets/Main/{split}.txt', data_prefix=data_prefix, test_mode=test_mode, **kwargs
        )

    def read_index(self) -> LabelIndex:
        self.require_file(self.ann_file)
        # A choice among VOC's classes leaves out the others' objects; own classes are all that there are.
        classes = self._metainfo['classes']
        if set(classes) <= set(self.METAINFO['classes']):
            classes = self.METAINFO['classes']
        ids, names, lists = [], [], dict(gt_label=([], []), gt_unknown=([], []))
        difficult_list = {'positive': 'gt_label', 'negative': None, 'unknown': 'gt_unknown'}[self.difficult]
        with open(self.ann_file, encoding='utf-8', errors='replace') as file:
            for line, image in enumerate(map(str.strip, file), 1):
                if not image:
                    continue
                # The id is part of two paths.
                if not re.fullmatch(r'\w[\w.-]{,99}', image) or '..' in image:
                    raise AnnotationError(
                        f'{self.ann_file}, line {line}: {quoted(image)} is not an image id. Files '
                        'such as dog_trainval.txt list one class; take trainval.txt'
                    )
                annotation = osp.join(self.data_root, 'Annotations', f'{image}.xml')
                if not osp.isfile(annotation):
                    raise AnnotationError(f'{self.ann_file}, line {line}: there is no {annotation}')
                easy, hard, suffix = self._objects(annotation, classes)
                for name, columns in (('gt_label', easy), (difficult_list, hard - easy)):
                    if name:
                        lists[name][0].extend([len(ids)] * len(columns))
                        lists[name][1].extend(columns)
                ids.append(image)
                names.append(image + suffix)
        if twice := first_repeated(ids):
            raise AnnotationError(f'{self.ann_file} lists {twice!r} twice')
        if self.difficult != 'unknown':
            del lists['gt_unknown']
        return LabelIndex(
            encode_names(names),
            classes,
            {name: Ragged.from_pairs(*pairs, len(ids), len(classes)) for name, pairs in lists.items()},
            np.array([image.encode() for image in ids], dtype='S'),
        )

    def _objects(self, path, classes):
        """Classes of the ordinary and of the difficult objects, two sets of indices, and the suffix of the picture."""
        with open(path, 'rb') as file:
            text = file.read()
        if b'<!DOCTYPE' in text or b'<!ENTITY' in text:
            raise AnnotationError(f"{path} declares a document type or entities, which VOC's files do not")
        try:
            root = ElementTree.fromstring(text)
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            raise AnnotationError(f'{path} is not an XML file: {error}') from None
        found = {'0': set(), '1': set()}
        for entry in root.findall('object'):
            name = (entry.findtext('name') or '').strip()
            if name not in classes:
                voc = self.METAINFO['classes']
                own = next((one for one in classes if one not in voc), None)
                if own is None:
                    hint, those = suggestion(name, voc), "VOC's 20"
                    remedy = 'For other data than VOC, metainfo=dict(classes=[...]) names all of its classes'
                else:
                    hint, those = '', 'metainfo=dict(classes=[...])'
                    remedy = f"It must name all classes, since {quoted(own)} is not VOC's{suggestion(own, voc)}"
                raise AnnotationError(
                    f'{path} has an object of class {quoted(name)}{hint}, which is none of {those}. {remedy}'
                )
            difficult = (entry.findtext('difficult') or '0').strip()
            if difficult not in found:
                raise AnnotationError(
                    f'{path}: difficult is {quoted(difficult)} for an object {quoted(name)}, neither 0 nor 1'
                )
            found[difficult].add(classes.index(name))
        suffix = osp.splitext((root.findtext('filename') or '').strip())[1]
        return found['0'], found['1'], suffix if suffix.lower() in PICTURE_SUFFIXES else '.jpg'
