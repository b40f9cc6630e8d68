"""An NNI experiment, as its tuner and as the command ``blockswap`` see it."""
