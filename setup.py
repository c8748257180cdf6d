"""What setup.cfg cannot say: the long description, which is README.md with links that work away from the repository."""

import configparser
import re
from pathlib import Path

import setuptools

ROOT = Path(__file__).parent


def description(readme: str, address: str) -> str:
    """Return README's text with absolute links into the repository at this address; without one, with their text alone."""
    picture = r"!\[([^]]*)\]\((?!\w+:)([^)]*)\)"
    link = r"\[([^]]*)\]\((?!\w+:)([^)]*)\)"
    if not address:
        return re.sub(link, r"\1", re.sub(picture, "", readme))
    readme = re.sub(picture, rf"![\1]({address}/raw/HEAD/\2)", readme)
    return re.sub(link, rf"[\1]({address}/blob/HEAD/\2)", readme)


if __name__ == "__main__":
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    setuptools.setup(
        script_name="setup.py",  # which is no module of the package, although it stands in the package's folder
        long_description=description((ROOT / "README.md").read_text(encoding="utf-8"), settings["metadata"].get("url", "")),
        long_description_content_type="text/markdown",
    )
