# SPDX-License-Identifier: GPL-2.0-only
"""The probe: a small VMM that runs inside the host under test, on the standard library alone.

It ships to the host as one zipapp. Nothing here judges; it does what it is told, exactly, and
reports what it saw.
"""
