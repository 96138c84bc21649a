"""XLA's flags, which must be set before JAX starts its backend.

* Eight host devices, for the tests that shard.
* LLVM's first optimization level: most of the time of these tests is compilation, and this takes a
  quarter off it.
"""

import os

WANTED = {
    "xla_force_host_platform_device_count": "8",
    "xla_backend_optimization_level": "1",
}
flags = os.environ.get("XLA_FLAGS", "")
missing = [f"--{name}={value}" for name, value in WANTED.items() if name not in flags]
os.environ["XLA_FLAGS"] = " ".join([flags, *missing]).strip()
