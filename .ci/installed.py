"""Use an installed excl away from its repository: import every module, and read every file that comes with it."""

import importlib
import pkgutil
import sys
from pathlib import Path

import excl
from excl.models.excl.paper import paper_r1
from excl.models.i3d.weight_catalogue import class_names

assert Path(excl.__file__).is_relative_to(sys.prefix), excl.__file__
modules = [found.name for found in pkgutil.walk_packages(excl.__path__, "excl.")]
for name in modules:
    importlib.import_module(name)
assert not [name for name in modules if name.split(".")[1] in ("tests", "bench", "docs")], modules
assert paper_r1("ExCL-clf 2-b", "tacos")
assert len(class_names("charades")) == 157
print(f"excl {excl.__version__}: {len(modules)} modules were imported from {excl.__file__}")
