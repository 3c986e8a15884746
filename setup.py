"""The part of the build that pyproject.toml cannot say: the C extension, on Linux only."""

from __future__ import annotations

import sys
import sysconfig

from setuptools import setup

# Objects of a build with other flags (KSMPY_DEBUG, CFLAGS) look up to date, and are not.
options = {"build_ext": {"force": "1"}}

# Free-threaded interpreters have no stable ABI: there a wheel serves one version only.
if not sysconfig.get_config_var("Py_GIL_DISABLED"):
    options["bdist_wheel"] = {"py_limited_api": "cp310"}

if sys.platform.startswith("linux"):
    setup(cffi_modules=["csrc/build_ffi.py:ffi"], options=options)
else:
    setup()
