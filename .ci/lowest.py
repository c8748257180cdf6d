"""Print pip constraints that hold each package to the lowest version that setup.cfg allows, one a line."""

import configparser
import re
from pathlib import Path

settings = configparser.ConfigParser()
settings.read(Path(__file__).parents[1] / "setup.cfg")
requirements = [settings["options"]["install_requires"], *settings["options.extras_require"].values()]
for line in "\n".join(requirements).splitlines():
    if match := re.match(r"(?P<name>[\w.-]+)\s*>=\s*(?P<version>[\w.]+)(?P<marker>.*)", line):
        print(f"{match['name']}=={match['version']}{match['marker']}")
