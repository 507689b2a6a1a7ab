"""What a base, a delta and an adapter are: loading, fingerprints, anatomy, exact delta arithmetic, probes."""
