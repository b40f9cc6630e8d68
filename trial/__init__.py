"""What a trial runs.

``python -m trial.distill`` trains a student, ``python -m trial.teacher`` its teacher, ``python -m trial.detect`` a
detector.
"""

import os
import warnings

# OpenMP's threads spin while they wait for each other. Where another process wants the same cores that makes a training
# step ten times slower or worse; asleep they cost little. It must be said before torch is imported, hence here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# NNI about torch's Buffer, when it is imported.
warnings.filterwarnings("ignore", message=".*is found to be not a nn.Module.*")
