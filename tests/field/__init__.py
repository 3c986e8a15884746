"""Programs from PyPI, as they are, under `ksmpy run`: `python -m tests.field`, and test_field.py.

The programs in apps/ are what their users would write, and know nothing of ksmpy.
"""
