"""What every fork needs: made once, before the first of them."""

from functools import cache

from distilbert_kit.data import grammar
from distilbert_kit.data.sources import expected_split
from distilbert_kit.study import measure

measure.LARGEST = 64

grammar.build_sentiment = cache(grammar.build_sentiment)
for split in ("train", "validation"):
    expected_split("embedded/sentiment", split)
