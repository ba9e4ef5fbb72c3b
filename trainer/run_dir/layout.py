"""Names of everything in a run's folder: `files.join(workdir, NAME)` is its path.

Whoever adds a file to the folder names it here.
"""

from tfrecords import manifest

# Written at each start: what the run is, and what its dataset's folder says of itself.
RUN = "run.json"
MANIFEST = manifest.FILE_NAME
TOKENIZER = manifest.TOKENIZER_FOLDER

# Grow with the run.
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
EVENTS = "events.jsonl"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
WANDB_ID = "wandb_id"

# Written at the end, and by `trainer.evaluate` and `trainer.plan`.
LOSS_CURVE = "loss_curve.png"
EVALUATIONS = "evaluations"
PLANS = "plans"
