"""How Sphinx builds the documentation: `make docs`."""

import re
from pathlib import Path

import fastlatent

ROOT = Path(__file__).resolve().parents[1]

project = "fastlatent"
author = copyright = "the fastlatent developers"
release = fastlatent.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "jupyter_execute", "gallery/*.ipynb", "**/sg_execution_times.rst"]
suppress_warnings = ["config.cache"]  # of what the gallery is drawn by
html_theme = "furo"
html_title = "fastlatent"

myst_heading_anchors = 3
myst_enable_extensions = ["deflist", "dollarmath"]
nb_execution_mode = "off"  # notebooks are kept with their outputs, and the tests run them

autodoc_member_order = "alphabetical"
autodoc_preserve_defaults = True
default_role = "code"

# Pages of the repository that are no pages of docs/.
PAGES = {"benchmarks": "benchmarks/README.md", "changelog": "CHANGELOG.md"}
LINKS = {
    "](../benchmarks/README.md": "](benchmarks.md",
    "](../notebooks/": "](path:../notebooks/",
    "](../docs/": "](",
    "](docs/": "](",
}
SPECIAL = re.compile(r"([*|]|_(?=\W|$))")  # what reStructuredText takes for its own


class Pictures:
    """Keeps the pictures that an example shows."""

    def __repr__(self):
        return "Pictures"  # in the settings that Sphinx compares from one build to the next

    def __call__(self, block, block_vars, gallery_conf):
        from sphinx_gallery.scrapers import figure_rst

        paths = []
        for picture in shown:
            paths.append(next(block_vars["image_path_iterator"]))
            picture.save(paths[-1])
        shown.clear()
        return figure_rst(paths, gallery_conf["src_dir"])


shown = []


def keep_what_is_shown(gallery_conf, name):
    from PIL import Image

    Image.Image.show = lambda picture, *_: shown.append(picture)


sphinx_gallery_conf = {
    "examples_dirs": str(ROOT / "examples"),
    "gallery_dirs": "gallery",
    "image_scrapers": ("matplotlib", Pictures()),
    "reset_modules": ("matplotlib", keep_what_is_shown),
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "remove_config_comments": True,
}


def read(app, name, source):
    """Pages from elsewhere in the repository, with their links as they are here."""
    if name in PAGES:
        source[0] = (ROOT / PAGES[name]).read_text()
    for old, new in LINKS.items():
        source[0] = source[0].replace(old, new)


def plain(app, what, name, obj, options, lines):
    """Docstrings are plain text, whose only markup is code in backticks and lists."""
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()
    for i, line in enumerate(lines):
        parts = line.split("`")
        lines[i] = "`".join(
            part if k % 2 else SPECIAL.sub(r"\\\1", part) for k, part in enumerate(parts)
        )


def setup(app):
    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", plain)
