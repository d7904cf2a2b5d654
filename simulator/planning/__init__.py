"""Which cards, how many, which parallelism, precision and engine for a model, a load and an SLO.

From facts (prices, layouts that fit, parts of a step) over a fluid bound to a search that simulates what may attain the
SLO. Must not depend on how any of it is shown.
"""
