"""A peer whose package is not there."""

PACKAGES = ("json", "no_such_package_anywhere")
