r"""Fine-tunes GPT-2 small on short jokes, such as a CSV of 200,000 one-liners.

Command   make preprocess CONFIG=configs/jokes.py INPUT=shortjokes.csv \
              ARGS=--config.data.text_field=Joke
          make train CONFIG=configs/jokes.py TPU=local
Hardware  v3-8: 8 replicas x microbatch 16
Cost      14 s of steps for 200,000 jokes of 22 tokens: 134 of 96 to 103 ms
Expected  not measured: this has not run on a TPU yet
Trap      a one-liner has a few dozen tokens: padded to a record of its own, most of a
          step is padding. Packed, with a start token before each, nothing is
"""

from configs import gpt2_small, schema


def get_config() -> schema.Config:
    """Returns the config of this job."""
    config = gpt2_small.get_config()
    config.data.sequence_length = 256
    config.data.start_token = "<|joke|>"
    config.data.deduplicate = True
    config.training.global_batch_size = 128  # as many tokens as 32 x 1,024
    config.training.microbatch_size = 16
    config.training.evaluation_interval = config.training.checkpoint_interval = 50
    config.hardware.tpu_type = "v3-8"
    return config
