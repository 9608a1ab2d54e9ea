"""The one thing pyproject.toml can't say well: an extension that is built where a compiler is, and missed nowhere."""

import os
import sysconfig

from setuptools import Extension, setup

# The files in a wheel bear this time and not that of the checkout: two builds of one commit are the same to the bit.
os.environ.setdefault("SOURCE_DATE_EPOCH", "1767225600")

# A build of Python without the GIL has no stable ABI to build for.
stable_abi = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    ext_modules=[
        Extension(
            "zg_async.wire._keccak",
            ["zg_async/wire/_keccak.c"],
            depends=["zg_async/wire/_keccak_lanes.h"],
            extra_compile_args=[] if os.name == "nt" else ["-O3", "-g0"],
            py_limited_api=stable_abi,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if stable_abi else {},
)
