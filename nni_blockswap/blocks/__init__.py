"""Blocks that can be swapped: sites, shells with an NNI ``LayerChoice`` each, spaces made of them."""
