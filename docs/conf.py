"""The site of these pages: Sphinx, reading Markdown."""

project = "twinbench"
extensions = ["myst_parser"]
exclude_patterns = ["results"]  # tables and figures that other pages show
html_theme = "furo"
html_title = "twinbench"
myst_heading_anchors = 3
