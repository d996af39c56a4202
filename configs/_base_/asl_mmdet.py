custom_imports = dict(imports=['asl_mmdet'], allow_failed_imports=False)
