r"""Fine-tunes GPT-2 small on WikiText-103 for one epoch.

Command   make preprocess CONFIG=configs/wikitext103.py INPUT=wiki.train.raw \
              VALIDATION_INPUT=wiki.valid.raw
          make train CONFIG=configs/wikitext103.py TPU=local
Hardware  v3-8: 8 replicas x microbatch 8
Cost      6 to 7 minutes of steps: about 1,750 of 212 to 226 ms
Expected  not measured: this has not run on a TPU yet
Trap      its validation and test text is WikiText-2's: never train on one to test on
          the other. A larger batch keeps learning rate / batch size
"""

from configs import schema, wikitext2


def get_config() -> schema.Config:
    """Returns the config of this job."""
    config = wikitext2.get_config()
    config.optimizer.learning_rate = 4e-4  # 5e-5 x 64 / 8
    config.training.global_batch_size = 64
    config.training.microbatch_size = 8
    config.training.evaluation_interval = config.training.checkpoint_interval = 200
    return config
