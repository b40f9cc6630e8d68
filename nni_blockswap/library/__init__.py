"""A library of blocks: every candidate of every site, taught by the teacher's activations to stand in for the original.

    teacher -> x and y of each branch -> candidates that learn y from x -> weights and errors on disk

One library serves every budget: errors add up to a score (``choosing``), weights to a student (``assembling``).
Sources: Moons et al., *Distilling Optimal Neural Networks* (DONNA, ICCV 2021); Molchanov et al., *LANA* (ECCV 2022).
"""
