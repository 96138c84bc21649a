"""`python -m kernels.bench.transform_quantize --out DIR`: transform and quantize against a copy."""

import sys

from kernels.bench import layers

if __name__ == "__main__":
    sys.argv += ["--sections", "ceilings,tq"]
    layers.main()
