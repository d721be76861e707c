# SPDX-License-Identifier: GPL-2.0-only
"""The source of a kernel module that uses mmu notifiers without KVM; docs/secondary-mmus.md."""
