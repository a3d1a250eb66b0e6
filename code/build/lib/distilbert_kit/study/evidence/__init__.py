"""From records to the figures that claims, notebooks and report use."""
