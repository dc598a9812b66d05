"""DNA: the sets of GenomicBenchmarks, their splits and scores, published figures, and order-k Markov models."""
