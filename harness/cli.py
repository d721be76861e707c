# SPDX-License-Identifier: GPL-2.0-only
"""The doors of the command line."""
