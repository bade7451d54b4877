"""The engine of a strategy: what happens in a round, without a strategy of Flower's around it.

Stages and their chain, the loop over rounds, tasks under way, replies, the arithmetic of a round,
and checkpoints. `qsfl_flower.strategies` puts Flower's ``Strategy`` around it and holds the stages.
"""
