"""``qsfl analytics``: a file of questions, its run on Flower's Ray backend, and its report."""
