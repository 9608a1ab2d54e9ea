"""numpy, kept to one thread.

Its matrix library starts a thread per core and lets them spin: beside a node and providers on the same two cores a
training then takes ten times as long, and its last digits depend on the machine. The limit is read when the library is
loaded, so it works unless the process has imported numpy before; child processes don't inherit it.
"""

import os
from typing import Final

_LIMITS: Final = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_added = [name for name in _LIMITS if name not in os.environ]
os.environ.update(dict.fromkeys(_added, "1"))
try:
    import numpy as np
    from numpy.typing import NDArray
finally:
    for _name in _added:
        del os.environ[_name]

__all__ = ["Array", "Tokens", "np"]

Array = NDArray[np.float32]
Tokens = NDArray[np.intp]
