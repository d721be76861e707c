# SPDX-License-Identifier: GPL-2.0-only
"""Ask a kernel whether KVM guests can be swapped, forked, remapped and killed safely."""

__version__ = "0.1.0"
