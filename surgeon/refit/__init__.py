"""One quadratic objective: what each weighted operator should compute, and the best weights under a constraint."""
