"""The part of the build that pyproject.toml cannot say: the C extension, on Linux only."""

from __future__ import annotations

import sys
import sysconfig

from setuptools import setup

# Objects of a build with other flags (KSMPY_DEBUG, CFLAGS) look up to date, and are not.
options = {"build_ext": {"force": "1"}}

# Free-threaded interpreters lay objects out otherwise: ksmpy installs there, and says so.
if sys.platform.startswith("linux") and not sysconfig.get_config_var("Py_GIL_DISABLED"):
    options["bdist_wheel"] = {"py_limited_api": "cp310"}
    setup(cffi_modules=["csrc/build_ffi.py:ffi"], options=options)
else:
    setup()
