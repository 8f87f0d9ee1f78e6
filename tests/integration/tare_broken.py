"""A plug-in that cannot be loaded: it needs something that is not installed."""

import a_library_that_nobody_installed

Broken = a_library_that_nobody_installed.Broken
