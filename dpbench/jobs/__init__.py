"""Kinds of run, one file each: `PLUGIN`, `Settings`, `uses`, optionally `parents`, `run`, `check`.

A job's module is torch-free at import (naming runs needs its settings); it imports torch inside `run` and `check`.
"""
