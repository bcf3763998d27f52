"""Figures and the report.

The variable is set before matplotlib is imported, which ends where it names a backend that is not
installed: every command started from a notebook inherits such a name. Figures here need none.
"""

import os

os.environ["MPLBACKEND"] = "agg"
