"""The kernel of `mosaic_gpu`: its `config`, the `kernel` of one block, and the parts of that.

Glossary: a *block* has three *warpgroups* of 128 threads and stays on its multiprocessor; it works
through *tiles* of the output. Warpgroup 2 loads: it fills a ring of `stages` pairs of operand tiles
by TMA, across the borders of output tiles, so that the next tile's first operands arrive during an
epilogue. Warpgroups 0 and 1 multiply (wgmma, operands from shared memory, sums in registers) and
write their results through shared memory, by TMA. Barriers: `loaded` (TMA -> multiplier) and
`consumed` (multiplier -> loader), one pair a stage; a *step* is one K tile of one output tile and
uses stage step % stages.
"""
