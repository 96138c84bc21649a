"""What the tests of formats share: the API under jit, and an independent float64 reference."""

import dataclasses

import jax
import ml_dtypes
import numpy as np

from wush_jax import formats

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
E4M3 = np.array(
    [m * 2.0**-9 for m in range(8)]
    + [(8 + m) * 2.0 ** (e - 10) for e in range(1, 16) for m in range(8)][:-1]
)
ALL = ("mxfp4/wush", "mxfp4/ocp", "mxfp4/ceil", "nvfp4/wush", "nvfp4/nvidia")
ALL += ("int4/wush", "int4/absmax", "int8/absmax")
GRIDS = {
    "mxfp4": np.concatenate([-E2M1[:0:-1], E2M1]),
    "nvfp4": np.concatenate([-E2M1[:0:-1], E2M1]),
    "int4/wush": np.arange(-8, 8) + 0.5,
    "int4/absmax": np.arange(-7.0, 8),
    "int8/absmax": np.arange(-127.0, 128),
}


quantize = jax.jit(formats.quantize, static_argnums=1)
fake_quantize = jax.jit(formats.fake_quantize, static_argnums=1)
dequantize = jax.jit(formats.dequantize, static_argnums=1)
quantized_values = jax.jit(formats.quantized_values, static_argnums=1)
codes_to_values = jax.jit(formats.codes_to_values, static_argnums=1)
scales_to_values = jax.jit(formats.scales_to_values, static_argnums=1)
data_global_scale = jax.jit(formats.data_global_scale, static_argnums=1)


def grid(spec):
    return GRIDS[spec] if spec in GRIDS else GRIDS[spec.split("/")[0]]


def group_size(spec):
    return 16 if spec.startswith("nvfp4") else 32


def nearest(table, x):
    """Index of the nearest entry of an ascending table; ties go to the even index."""
    distance = np.abs(np.asarray(x, np.float64)[..., None] - table)
    low = np.argmin(distance, axis=-1)
    tie = np.take_along_axis(distance, np.minimum(low + 1, len(table) - 1)[..., None], -1)[..., 0]
    tie = (tie == distance.min(axis=-1)) & (low + 1 < len(table))
    return np.where(tie & (low % 2 == 1), low + 1, low)


@dataclasses.dataclass
class Reference:
    units: np.ndarray  # x / (scale * global scale), exact, before rounding to the grid
    scales: np.ndarray  # float64 values of the group scales
    global_scale: float
    values: np.ndarray  # grid values


def exact(x, spec):
    """The reference quantizer, for x [..., K], finite, of any float dtype."""
    x = np.asarray(x, np.float64)
    name, rule = spec.split("/")
    groups = x.reshape(*x.shape[:-1], -1, group_size(spec))
    amax = np.abs(groups).max(-1)
    safe = np.where(amax > 0, amax, 1.0)
    if name == "mxfp4":
        g = float(np.float32(1 / 3)) if rule == "wush" else 1.0
        exponent = np.frexp(safe)[1] - 1  # floor(log2)
        if rule == "ocp":
            exponent = exponent - 2
        if rule == "ceil":
            exponent = np.frexp(safe)[1] - 4
            exponent = np.where(6 * 2.0**exponent < safe, exponent + 1, exponent)
            exponent = np.where(6 * 2.0**exponent < safe, exponent + 1, exponent)
        scales = 2.0 ** np.where(amax > 0, np.clip(exponent, -127, 127), -127)
        inverse = 3.0 if rule == "wush" else 1.0
    elif name == "nvfp4":
        g = 0.1
        if rule == "nvidia":
            g = max(float(np.float32(amax.max() / 2688)), 2.0**-126) if amax.any() else 1.0
        scales = E4M3[nearest(E4M3, np.minimum(amax / 6 / g, 448))]
        inverse = 1 / g
    else:
        g = inverse = 1.0
        statistic = {"int4/absmax": amax / 7, "int8/absmax": amax / 127}.get(spec)
        if statistic is None:
            unit = groups / safe[..., None]
            statistic = 2.5139 * 2 / 15 * np.sqrt((unit**2).mean(-1)) * amax
        scales = statistic.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)
        scales = np.where(amax > 0, np.maximum(scales, 2.0**-126), 0.0)
    positive = np.where(scales > 0, scales, 1.0)[..., None]
    units = np.where(scales[..., None] > 0, groups / positive * inverse, 0.0)
    table = grid(spec)
    if spec == "int4/wush":
        values = np.clip(np.floor(units), -8, 7) + 0.5
    elif name == "int4" or name == "int8":
        values = np.clip(np.round(units), table[0], table[-1])
    else:
        values = np.sign(units) * E2M1[nearest(E2M1, np.minimum(np.abs(units), 6))]
    return Reference(units.reshape(x.shape), scales, g, values.reshape(x.shape))
