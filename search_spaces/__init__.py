"""NNI model spaces: networks whose residual blocks can each be substituted."""
