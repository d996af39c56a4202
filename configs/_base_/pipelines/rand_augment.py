# The paper names AutoAugment (appendix B), the public script uses RandAugment. The space is RandAugment's of section 3
# (https://arxiv.org/abs/1909.13719) without the identity; each operation draws its strength from mmdet's whole range.
# CutOut, too, is the script's, whose hole has a random colour and its center in the picture; mmdet's is grey, with its
# corner there.
rand_augment = dict(
    type='RandAugment',
    aug_num=2,
    aug_space=[
        [dict(type='PillowAutoContrast')],
        [dict(type='PillowEqualize')],
        [dict(type='Rotate')],
        [dict(type='Solarize')],
        [dict(type='Color')],
        [dict(type='Posterize')],
        [dict(type='Contrast')],
        [dict(type='Brightness')],
        [dict(type='Sharpness')],
        [dict(type='ShearX')],
        [dict(type='ShearY')],
        [dict(type='TranslateX')],
        [dict(type='TranslateY')],
    ],
)
cutout = dict(type='CutOut', n_holes=1, cutout_ratio=(0.5, 0.5), fill_in=(128, 128, 128))
