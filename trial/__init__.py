"""What a trial runs: ``python -m trial.distill`` trains a student, ``python -m trial.teacher`` its teacher."""
