# Section 2.5, point 3: does the margin help when labels are missing? On the complete labels and without three in ten:
# python tools/make_shapes.py data/shapes-64 --size 64 --val 600
# python tools/make_shapes.py data/shapes-64-missing --size 64 --val 600 --missing-labels 0.3
base = 'configs/multi_label/tresnet-narrow_asl_shapes-64.py'
metric = 'multi-label/mAP'
seeds = [0, 1, 2]
runs = {
    f'{labels}, {loss}, margin {clip}': {
        'model.head.loss': dict(gamma_pos=gamma_pos, gamma_neg=gamma_neg, clip=clip),
        **{f'{split}_dataloader.dataset.data_root': root for split in ('train', 'val', 'test')},
    }
    for labels, root in (('complete', 'data/shapes-64/'), ('missing', 'data/shapes-64-missing/'))
    for loss, gamma_pos, gamma_neg, margin in (
        ('cross-entropy', 0.0, 0.0, 0.05),
        ('focal', 2.0, 2.0, 0.3),
        ('focusing', 0.0, 4.0, 0.05),
    )
    for clip in (0.0, margin)
}
