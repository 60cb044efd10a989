"""The op table. Importing this package fills it: every module here is imported, so a new op needs no list."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
