"""How far equal numbers may differ."""

# One text alone and the same text in a batch, or the same model by another library, pass through
# products of other shapes, which the CPU's library sums in another order (on some processors
# only). A score is equal up to this, relative and absolute; labels, spans and order are equal.
ROUNDING = 1e-5
