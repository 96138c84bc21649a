"""Products by their canonical form: einsums of any kind, windows, picked and split weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wush_jax.frontends.traced.products import Product
from wush_jax.frontends.traced.program import Program, weight
from wush_jax.layers.contraction import kernel_to_matrix


class Rewriting:
    """Computes every product from its canonical form, and notes the roles."""

    inlines = False
    combine = None

    def __init__(self, leaf):
        self.leaf, self.roles, self.reasons = leaf, [], []

    def product(self, run, found: Product, weight, x, eqn):
        assert not any(pick.kind == "scan" for pick in found.view.picks)
        self.roles.append(found.roles)
        contraction = found.contraction(())
        rows = contraction.rows(found.canonical(x))
        whole = jnp.asarray(self.leaf)
        batch = contraction.roles.count("b")
        matrix = kernel_to_matrix(whole, contraction.roles)
        flat = rows.reshape(*rows.shape[:batch], -1, rows.shape[-1])
        y = jnp.matmul(flat, matrix, precision="highest")
        y = y.reshape(*rows.shape[:-1], matrix.shape[-1])
        return found.output(contraction.output(y, whole.shape), ())

    def read(self, run, weight, inputs, eqn, why):
        self.reasons.append(why)


def rewritten(function, leaf, x):
    handler = Rewriting(leaf)
    program = Program.of(function, (leaf, x), {})
    out, _ = program.run(handler, [weight("w", jnp.asarray(leaf)), jnp.asarray(x)])
    return out, handler


def arrays(rng, *shapes):
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


EINSUMS = [
    ("btk,kn->btn", (2, 3, 8), (8, 5), "kn"),
    ("btk,nk->btn", (2, 3, 8), (5, 8), "nk"),
    ("btk,nkh->btnh", (2, 3, 8), (4, 8, 6), "nkn"),
    ("btk,cknh->cbtnh", (2, 3, 8), (2, 8, 4, 3), "nknn"),
    ("btnh,nhd->btd", (2, 3, 4, 5), (4, 5, 7), "kkn"),
    ("btnh,hdn->dbt", (2, 3, 4, 5), (5, 7, 4), "knk"),
    ("ebk,ekn->ebn", (3, 2, 8), (3, 8, 5), "bkn"),
    ("bek,kne->ben", (2, 3, 8), (8, 5, 3), "knb"),
    ("bk,k1n->b1n".replace("1", "o"), (2, 8), (8, 1, 5), "knn"),
]


@pytest.mark.parametrize(("equation", "x", "w", "roles"), EINSUMS, ids=[e[0] for e in EINSUMS])
def test_einsums(equation, x, w, roles):
    x, w = arrays(np.random.default_rng(0), x, w)
    out, handler = rewritten(lambda w, x: jnp.einsum(equation, x, w), w, x)
    assert handler.roles == [roles]
    np.testing.assert_allclose(out, np.einsum(equation, x, w), rtol=2e-5, atol=2e-5)


REARRANGED = {
    "merged": (lambda w, x: x @ w.reshape(8, 12), (8, 3, 4), (5, 8), "knn"),
    "split": (lambda w, x: jnp.einsum("bk,knh->nbh", x, w.reshape(8, 3, 4)), (8, 12), (5, 8), "kn"),
    "split k": (
        lambda w, x: jnp.einsum("bhd,hdn->bn", x, w.reshape(2, 4, 6)),
        (8, 6),
        (5, 2, 4),
        "kn",
    ),
    "split k, crosswise": (
        lambda w, x: jnp.einsum("bdh,hdn->bn", x, w.reshape(2, 4, 6)),
        (8, 6),
        (5, 4, 2),
        "kn",
    ),
    "weight first": (lambda w, x: jnp.einsum("nk,bk->nb", w, x), (6, 8), (5, 8), "nk"),
    "a range of outputs": (lambda w, x: x @ w[:, 2:6], (8, 12), (5, 8), "kn"),
    "one of two": (lambda w, x: x @ w[1], (2, 8, 6), (5, 8), "?kn"),
    "1 x 1": (
        lambda w, x: jax.lax.conv_general_dilated(
            x, w, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        (1, 1, 3, 5),
        (2, 4, 6, 3),
        "nnkn",
    ),
    "patches": (
        lambda w, x: jax.lax.conv_general_dilated(
            x, w, (2, 3), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        (2, 3, 3, 5),
        (2, 5, 6, 3),
        "kkkn",
    ),
    "patches, channels first": (
        lambda w, x: jax.lax.conv_general_dilated(x, w, (2, 2), "VALID"),
        (5, 3, 2, 2),
        (2, 3, 4, 6),
        "nkkk",
    ),
}


@pytest.mark.parametrize("case", REARRANGED)
def test_rearranged(case):
    function, w, x, roles = REARRANGED[case]
    w, x = arrays(np.random.default_rng(1), w, x)
    out, handler = rewritten(function, w, x)
    assert handler.roles == [roles]
    np.testing.assert_allclose(out, function(jnp.asarray(w), x), rtol=2e-5, atol=2e-5)


REFUSED = {
    "a window of three": (
        lambda w, x: jax.lax.conv_general_dilated(x, w, (1,), "SAME"),
        (5, 3, 3),
        (2, 3, 8),
        "convolution 3",
    ),
    "a part of the features": (
        lambda w, x: x @ w[:4],
        (8, 6),
        (5, 4),
        "product with a part of its features",
    ),
    "an axis in two roles": (
        lambda w, x: jnp.einsum("bd,hdn->bhn", x, w.reshape(2, 4, 6)),
        (8, 6),
        (5, 4),
        "axis 0 is in part contracted and in part not",
    ),
    "outer product": (
        lambda w, x: jnp.einsum("k,bk->bk", w[:, 0], x),
        (8, 1),
        (5, 8),
        "product that contracts nothing",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_product_is_told(case):
    function, w, x, reason = REFUSED[case]
    w, x = arrays(np.random.default_rng(2), w, x)
    out, handler = rewritten(function, w, x)
    assert handler.roles == []
    assert reason in handler.reasons
    np.testing.assert_allclose(out, function(jnp.asarray(w), x), rtol=2e-5, atol=2e-5)
