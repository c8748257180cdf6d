"""Compare a wheel and an sdist, WHEEL SDIST, with the files that git has: nothing is missing, and the wheel has no more."""

import configparser
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path


def _fits(name: str, pattern: str) -> bool:
    """Return whether a file of the repository is one of the package's files."""
    path, pattern_path = Path("excl", name), Path(pattern)
    return path.parent == pattern_path.parent and path.match(pattern_path.name)


files = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.splitlines()
settings = configparser.ConfigParser()
settings.read("setup.cfg")
modules = {f"{package.replace('.', '/')}/*.py" for package in settings["options"]["packages"].split()}
data = {
    f"{package.replace('.', '/')}/{pattern}"
    for package, patterns in settings["options.package_data"].items()
    for pattern in patterns.split()
}
of_wheel = {f"excl/{name}" for name in files for pattern in modules | data if _fits(name, pattern)} - {"excl/setup.py"}
packed = {name for name in zipfile.ZipFile(sys.argv[1]).namelist() if ".dist-info/" not in name}
if packed != of_wheel:
    sys.exit(f"the wheel lacks {sorted(of_wheel - packed)}, and should not have {sorted(packed - of_wheel)}")
with tarfile.open(sys.argv[2]) as archive:
    members = {name.partition("/")[2] for name in archive.getnames()}
if lacking := [name for name in files if name not in members and not name.startswith(".typing/")]:
    sys.exit(f"the sdist lacks {lacking}; MANIFEST.in says what it has")
print(f"the wheel has {len(packed)} files, and the sdist all {len(files)} that git has but the links in .typing")
