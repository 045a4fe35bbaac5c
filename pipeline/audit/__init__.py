"""Everything that can be recomputed of a run, against what the run recorded."""
