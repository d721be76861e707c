# SPDX-License-Identifier: GPL-2.0-only
"""``python3 -m harness``: the command line without an installation."""

from harness.cli import main

main()
