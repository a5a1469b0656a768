"""Sphinx's settings for the guide; `make docs` stages the pages and calls it (tools/guide.py)."""

project = "thor_policy_ros"
author = "the authors of thor_policy_ros"
html_title = "thor_policy_ros"

extensions = ["myst_parser"]
myst_heading_anchors = 4  # as in README: a link to #a-heading is checked
root_doc = "index"
exclude_patterns = ["benchmarks/results", "checkpoints"]
smartquotes = False  # --options stay as they are typed
highlight_language = "text"

# A lab's browser asks nobody: furo brings its own style and scripts, and search is a file.
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["guide.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"top_of_page_buttons": []}
pygments_style = "friendly"
