"""The one thing pyproject.toml can't say well: an extension that is built where a compiler is, and missed nowhere."""

import os
import sysconfig

from setuptools import Extension, setup

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
